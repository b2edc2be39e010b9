// Matrix products in fp32, whatever the element type. Reference: modernbert_fast/reference/linear.py

// Steps of the inner sum between two visits to the accumulators in memory: a panel of b this deep stays in the L1
// cache.
constexpr index_t kLinearDepth = 256;

/// b[first..first + columns) -> panels [columns / kTileColumns][K][kTileColumns]
template <class T>
void pack_columns(const LinearArgs& a, index_t first, float* panels) {
  const T* const b = static_cast<const T*>(a.b.data);
  const index_t columns = a.N - first < a.columns ? a.N - first : a.columns;
  for (index_t n = 0; n < columns; n += kTileColumns, panels += a.K * kTileColumns) {
    const index_t left = columns - n < kTileColumns ? columns - n : kTileColumns;
    if (a.b.transposed) {
      pack_rows(b + first + n, a.b.stride, a.K, left, panels, kTileColumns, kTileColumns);
      continue;
    }
    for (index_t v = 0; v < kTileVecs; ++v) {
      const index_t rows = left - v * kLanes < 0 ? 0 : left - v * kLanes < kLanes ? left - v * kLanes : kLanes;
      pack_transposed(b + (first + n + v * kLanes) * a.b.stride, a.b.stride, rows, a.K, panels + v * kLanes,
                      kTileColumns);
    }
  }
}

/// a[first..first + rows) -> (rows, linear_depth(K))
template <class T>
void pack_block(const LinearArgs& a, index_t first, index_t rows, float* block) {
  const T* const x = static_cast<const T*>(a.a.data);
  const index_t stride = linear_depth(a.K);
  if (!a.a.transposed) return pack_rows(x + first * a.a.stride, a.a.stride, rows, a.K, block, stride, a.K);
  for (index_t k = 0; k < a.K; k += kLanes)
    pack_transposed(x + k * a.a.stride + first, a.a.stride, a.K - k < kLanes ? a.K - k : kLanes, rows, block + k,
                    stride);
}

template <class T>
void linear_as(const LinearArgs& a, index_t begin, index_t end, float* scratch) {
  const index_t blocks = (a.M + kLinearRows - 1) / kLinearRows;
  float* const panels = scratch;
  float* const block = panels + a.columns * a.K;
  float* const sums = block + kLinearRows * linear_depth(a.K);
  const bool direct = is_same<T, float> && !a.a.transposed;
  index_t packed = -1;  // the columns that panels hold
  for (index_t unit = begin; unit < end; ++unit) {
    const index_t n0 = unit / blocks * a.columns, m0 = unit % blocks * kLinearRows;
    const index_t columns = a.N - n0 < a.columns ? a.N - n0 : a.columns;
    const index_t rows = a.M - m0 < kLinearRows ? a.M - m0 : kLinearRows;
    if (packed != n0) pack_columns<T>(a, n0, panels);
    packed = n0;
    const float* x = block;
    index_t x_stride = linear_depth(a.K);
    if (direct) {
      x = static_cast<const float*>(a.a.data) + m0 * a.a.stride;
      x_stride = a.a.stride;
    } else {
      pack_block<T>(a, m0, rows, block);
    }
    for (index_t k = 0; k < a.K || k == 0; k += kLinearDepth) {
      const index_t depth = a.K - k < kLinearDepth ? a.K - k : kLinearDepth;
      for (index_t n = 0; n < columns; n += kTileColumns)
        for (index_t m = 0; m < rows; m += kTileRows)
          tile_rows(rows - m < kTileRows ? rows - m : kTileRows, x + m * x_stride + k, x_stride, 1,
                    panels + n * a.K + k * kTileColumns, kTileColumns, depth, sums + m * a.columns + n, a.columns, k);
    }
    for (index_t m = 0; m < rows; ++m) {
      const float* const sum = sums + m * a.columns;
      T* const y = static_cast<T*>(a.y) + (m0 + m) * a.N + n0;
      const T* const bias = static_cast<const T*>(a.bias) + n0;
      for_row(columns, [&](index_t n, auto lanes, int) MODERNBERT_FAST_LAMBDA {
        store(y + n, a.bias ? load(sum + n) + load(bias + n, lanes) : load(sum + n), lanes);
      });
    }
  }
}

void linear(const LinearArgs& a, index_t begin, index_t end, float* scratch) {
  switch (a.dtype) {
    case DType::kFloat: return linear_as<float>(a, begin, end, scratch);
    case DType::kBFloat16: return linear_as<BFloat16>(a, begin, end, scratch);
    case DType::kHalf: return linear_as<Half>(a, begin, end, scratch);
  }
}

template <class T>
void column_sum_as(const ColumnSumArgs& a, index_t begin, index_t end) {
  const T* const x = static_cast<const T*>(a.x);
  for (index_t c = begin; c < end; c += kLanes) {
    const Partial lanes{end - c < kLanes ? end - c : kLanes};
    Vec sum = {};
    for (index_t r = 0; r < a.rows; ++r) sum += load(x + r * a.stride + c, lanes);
    store(static_cast<T*>(a.y) + c, sum, lanes);
  }
}

void column_sum(const ColumnSumArgs& a, index_t begin, index_t end) {
  switch (a.dtype) {
    case DType::kFloat: return column_sum_as<float>(a, begin, end);
    case DType::kBFloat16: return column_sum_as<BFloat16>(a, begin, end);
    case DType::kHalf: return column_sum_as<Half>(a, begin, end);
  }
}
