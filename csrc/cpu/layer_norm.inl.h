// Layer norm, one row at a time in fp32 scratch. Reference: modernbert_fast/reference/layer_norm.py

struct NoResidual {};

constexpr index_t kRun = 256;  // columns: a few fp32 additions for each lane of each accumulator

/// row = x, or x + residual rounded to the dtype of the stream and written to sum. Returns the sum of the row.
template <class X, class R>
MODERNBERT_FAST_INLINE float read_row(const X* x, const R* residual, R* sum, index_t C, float* row) {
  Sum total;
  for_row(C, [&](index_t c, auto lanes, int u) MODERNBERT_FAST_LAMBDA {
    Vec v = load(x + c, lanes);
    if constexpr (!is_same<R, NoResidual>) {
      store(sum + c, v + load(residual + c, lanes), lanes);
      v = load(sum + c, lanes);
    }
    store(row + c, v);
    total.part[u] += v;
  });
  return total.total();
}

/// Y: dtype of y and, unless R is NoResidual, of residual and sum.
template <class X, class Y, class R>
void layer_norm_forward_as(const LayerNormForwardArgs& a, index_t begin, index_t end, float* row) {
  const index_t C = a.C;
  const float* const weight = a.weight;
  const float* const bias = a.bias;
  const bool stream = a.stream && can_stream(static_cast<Y*>(a.y), C);
  const auto x_row = [&](index_t t) { return static_cast<const X*>(a.x) + (a.ids ? a.ids[t] : t) * a.x_stride; };
  for (index_t t = begin; t < end; ++t) {
    const X* x = x_row(t);
    const X* next_x = x_row(t + 1 < end ? t + 1 : t);
    const R* residual = a.residual ? static_cast<const R*>(a.residual) + t * a.residual_stride : nullptr;
    R* sum = a.residual ? static_cast<R*>(a.sum) + t * C : nullptr;
    Y* y = static_cast<Y*>(a.y) + t * C;

    const float mean = read_row(x, residual, sum, C, row) / C;

    // The fp32 mean of an offset row is off by an ulp of the offset, which can exceed the spread: correct it.
    const Vec mean_v = splat(mean);
    Sum centred;
    for_row(C, [&](index_t c, auto lanes, int u) MODERNBERT_FAST_LAMBDA {
      // The next row arrives while this one is worked on in L1.
      __builtin_prefetch(next_x + c);
      if constexpr (!is_same<R, NoResidual>) __builtin_prefetch(residual + a.residual_stride + c);
      centred.part[u] += keep(load(row + c) - mean_v, lanes);
    });
    const float correction = centred.total() / C;

    // From run to run in fp64: one fp32 sum of thousands of squares is off by several last places of rstd.
    const Vec correction_v = splat(correction);
    double squares = 0;
    for (index_t first = 0; first < C; first += kRun) {
      float* const run = row + first;
      Sum sum_of_run;
      for_row(C - first < kRun ? C - first : kRun, [&](index_t c, auto lanes, int u) MODERNBERT_FAST_LAMBDA {
        const Vec d = keep((load(run + c) - mean_v) - correction_v, lanes);
        store(run + c, d);
        sum_of_run.part[u] += d * d;
      });
      squares += sum_of_run.total();
    }
    const float rstd = static_cast<float>(1 / __builtin_sqrt(squares / C + a.eps));

    const Vec rstd_v = splat(rstd);
    for_row(C, [&](index_t c, auto lanes, int) MODERNBERT_FAST_LAMBDA {
      const Vec normed = load(row + c) * rstd_v;
      store(y + c, normed * load(weight + c, lanes) + load(bias + c, lanes), lanes, stream);
    });

    a.mean[t] = mean + correction;
    a.rstd[t] = rstd;
  }
  if (stream) end_of_stream();
}

void layer_norm_forward(const LayerNormForwardArgs& a, index_t begin, index_t end, float* scratch) {
  const bool widens = a.x_dtype != a.y_dtype;  // half precision x onto an fp32 stream
  switch (a.x_dtype) {
    case DType::kFloat:
      if (a.residual) return layer_norm_forward_as<float, float, float>(a, begin, end, scratch);
      return layer_norm_forward_as<float, float, NoResidual>(a, begin, end, scratch);
    case DType::kBFloat16:
      if (widens) return layer_norm_forward_as<BFloat16, float, float>(a, begin, end, scratch);
      if (a.residual) return layer_norm_forward_as<BFloat16, BFloat16, BFloat16>(a, begin, end, scratch);
      return layer_norm_forward_as<BFloat16, BFloat16, NoResidual>(a, begin, end, scratch);
    case DType::kHalf:
      if (widens) return layer_norm_forward_as<Half, float, float>(a, begin, end, scratch);
      if (a.residual) return layer_norm_forward_as<Half, Half, Half>(a, begin, end, scratch);
      return layer_norm_forward_as<Half, Half, NoResidual>(a, begin, end, scratch);
  }
}

template <class T>
void layer_norm_backward_as(const LayerNormBackwardArgs& a, index_t begin, index_t end, index_t block, float* scratch) {
  const index_t C = a.C;
  const float* const weight = a.weight;
  float* normed = scratch;                               // (C,) x hat
  float* dnormed = scratch + layer_norm_scratch(C) / 2;  // (C,) its gradient
  float* dweight = a.dweight ? a.dweight + block * C : nullptr;
  float* dbias = a.dbias ? a.dbias + block * C : nullptr;
  if (dweight) memset(dweight, 0, C * sizeof(float));
  if (dbias) memset(dbias, 0, C * sizeof(float));

  for (index_t t = begin; t < end; ++t) {
    const T* x = static_cast<const T*>(a.x) + t * a.x_stride;
    const T* dy = static_cast<const T*>(a.dy) + t * a.dy_stride;
    const T* dsum = a.dsum ? static_cast<const T*>(a.dsum) + t * a.dsum_stride : nullptr;
    T* dx = static_cast<T*>(a.dx) + t * C;

    // The saved mean is one fp32 number: what rounding it lost is in the mean of x - mean.
    const Vec mean = splat(a.mean[t]);
    Sum centred;
    for_row(C, [&](index_t c, auto lanes, int u) MODERNBERT_FAST_LAMBDA {
      const Vec d = keep(load(x + c, lanes) - mean, lanes);
      store(normed + c, d);
      centred.part[u] += d;
    });

    const Vec correction = splat(centred.total() / C);
    const Vec rstd = splat(a.rstd[t]);
    Sum dnormed_sum, projection;
    for_row(C, [&](index_t c, auto lanes, int u) MODERNBERT_FAST_LAMBDA {
      const Vec n = keep(load(normed + c) - correction, lanes) * rstd;
      const Vec g = load(dy + c, lanes);
      const Vec dn = g * load(weight + c, lanes);
      store(normed + c, n);
      store(dnormed + c, dn);
      dnormed_sum.part[u] += dn;
      projection.part[u] += dn * n;
      if (dweight) store(dweight + c, load(dweight + c, lanes) + g * n, lanes);
      if (dbias) store(dbias + c, load(dbias + c, lanes) + g, lanes);
    });

    const Vec mean_dn = splat(dnormed_sum.total() / C);
    const Vec mean_dn_n = splat(projection.total() / C);
    for_row(C, [&](index_t c, auto lanes, int) MODERNBERT_FAST_LAMBDA {
      Vec d = rstd * (load(dnormed + c) - mean_dn - load(normed + c) * mean_dn_n);
      if (dsum) d += load(dsum + c, lanes);
      store(dx + c, d, lanes);
    });
  }
}

void layer_norm_backward(const LayerNormBackwardArgs& a, index_t begin, index_t end, index_t block, float* scratch) {
  switch (a.dtype) {
    case DType::kFloat: return layer_norm_backward_as<float>(a, begin, end, block, scratch);
    case DType::kBFloat16: return layer_norm_backward_as<BFloat16>(a, begin, end, block, scratch);
    case DType::kHalf: return layer_norm_backward_as<Half>(a, begin, end, block, scratch);
  }
}

void layer_norm_reduce(const float* partial, index_t blocks, index_t C, index_t begin, index_t end, float* total) {
  constexpr index_t kColumns = 64;  // fp64 totals that stay in L1
  for (index_t first = begin; first < end; first += kColumns) {
    const index_t n = first + kColumns < end ? kColumns : end - first;
    double sum[kColumns] = {};
    for (index_t b = 0; b < blocks; ++b)
      for (index_t i = 0; i < n; ++i) sum[i] += partial[b * C + first + i];
    for (index_t i = 0; i < n; ++i) total[first + i] = static_cast<float>(sum[i]);
  }
}
