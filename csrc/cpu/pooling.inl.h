// One vector a text, in fp32 scratch. Reference: modernbert_fast/reference/pooling.py

/// total = the sum of n rows: of sums of a few rows each, so that long texts keep their digits.
template <class T>
MODERNBERT_FAST_INLINE void sum_rows(const T* x, index_t stride, index_t n, index_t C, float* total, float* partial) {
  constexpr index_t kRows = 32;
  memset(total, 0, C * sizeof(float));
  for (index_t first = 0; first < n; first += kRows) {
    const index_t last = first + kRows < n ? first + kRows : n;
    memset(partial, 0, C * sizeof(float));
    for (index_t t = first; t < last; ++t) {
      const T* row = x + t * stride;
      for_row(C, [&](index_t c, auto lanes, int)
                     MODERNBERT_FAST_LAMBDA { store(partial + c, load(partial + c) + load(row + c, lanes)); });
    }
    for_row(
        C, [&](index_t c, auto, int) MODERNBERT_FAST_LAMBDA { store(total + c, load(total + c) + load(partial + c)); });
  }
}

template <class T>
void pooling_forward_as(const PoolingForwardArgs& a, index_t begin, index_t end, float* pooled) {
  constexpr float kSmallestNorm = 1e-12f;
  const index_t C = a.C;
  for (index_t b = begin; b < end; ++b) {
    const index_t start = a.cu_seqlens[b], n = a.cu_seqlens[b + 1] - start;
    const T* x = static_cast<const T*>(a.x) + start * a.x_stride;
    T* y = static_cast<T*>(a.y) + b * C;

    const index_t rows = a.mean || n == 0 ? n : 1;
    sum_rows(x, a.x_stride, rows, C, pooled, pooled + pooling_scratch(C) / 2);
    const Vec count = splat(rows > 0 ? rows : 1);
    Sum squares;
    for_row(C, [&](index_t c, auto lanes, int u) MODERNBERT_FAST_LAMBDA {
      const Vec v = keep(load(pooled + c) / count, lanes);
      store(pooled + c, v);
      squares.part[u] += v * v;
    });

    float norm = 1.0f;
    if (a.normalize) {
      norm = __builtin_sqrtf(squares.total());
      if (norm < kSmallestNorm) norm = kSmallestNorm;  // and NaN stays
    }
    const Vec norm_v = splat(norm);
    for_row(C,
            [&](index_t c, auto lanes, int) MODERNBERT_FAST_LAMBDA { store(y + c, load(pooled + c) / norm_v, lanes); });
    a.norm[b] = norm;
  }
}

void pooling_forward(const PoolingForwardArgs& a, index_t begin, index_t end, float* scratch) {
  switch (a.dtype) {
    case DType::kFloat: return pooling_forward_as<float>(a, begin, end, scratch);
    case DType::kBFloat16: return pooling_forward_as<BFloat16>(a, begin, end, scratch);
    case DType::kHalf: return pooling_forward_as<Half>(a, begin, end, scratch);
  }
}

template <class T>
void pooling_backward_as(const PoolingBackwardArgs& a, index_t begin, index_t end, float* dpooled) {
  const index_t C = a.C;
  for (index_t b = begin; b < end; ++b) {
    const index_t start = a.cu_seqlens[b], n = a.cu_seqlens[b + 1] - start;
    const T* dy = static_cast<const T*>(a.dy) + b * a.dy_stride;
    const T* y = static_cast<const T*>(a.y) + b * a.y_stride;
    T* dx = static_cast<T*>(a.dx) + start * C;
    if (n == 0) continue;

    Sum projection;
    if (a.normalize)
      for_row(C, [&](index_t c, auto lanes, int u)
                     MODERNBERT_FAST_LAMBDA { projection.part[u] += load(dy + c, lanes) * load(y + c, lanes); });
    const Vec along = splat(projection.total()), norm = splat(a.norm[b]), count = splat(a.mean ? n : 1);
    for_row(C, [&](index_t c, auto lanes, int) MODERNBERT_FAST_LAMBDA {
      Vec g = load(dy + c, lanes);
      if (a.normalize) g = (g - load(y + c, lanes) * along) / norm;
      store(dpooled + c, g / count);
    });

    const index_t rows = a.mean ? n : 1;
    for (index_t t = 0; t < rows; ++t)
      for_row(C, [&](index_t c, auto lanes, int)
                     MODERNBERT_FAST_LAMBDA { store(dx + t * C + c, load(dpooled + c), lanes); });
    memset(dx + rows * C, 0, (n - rows) * C * sizeof(T));
  }
}

void pooling_backward(const PoolingBackwardArgs& a, index_t begin, index_t end, float* scratch) {
  switch (a.dtype) {
    case DType::kFloat: return pooling_backward_as<float>(a, begin, end, scratch);
    case DType::kBFloat16: return pooling_backward_as<BFloat16>(a, begin, end, scratch);
    case DType::kHalf: return pooling_backward_as<Half>(a, begin, end, scratch);
  }
}
