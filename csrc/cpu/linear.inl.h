// Matrix products in fp32, whatever the element type. Reference: modernbert_fast/reference/linear.py

// Steps of the inner sum between two visits to the accumulators in memory: a panel of b this deep stays in the L1
// cache.
constexpr index_t kLinearDepth = 256;

/// b[first..first + kTileColumns) -> (K, kTileColumns), zero beyond the last column
template <class T>
void pack_panel(const LinearArgs& a, index_t first, float* panel) {
  const T* const b = static_cast<const T*>(a.b.data);
  const index_t columns = smaller(a.N - first, kTileColumns);
  if (a.b.transposed) return pack_rows(b + first, a.b.stride, a.K, columns, panel, kTileColumns, kTileColumns);
  for (index_t v = 0; v < kTileVecs; ++v)
    pack_transposed(b + (first + v * kLanes) * a.b.stride, a.b.stride, smaller(larger(columns - v * kLanes, 0), kLanes),
                    a.K, panel + v * kLanes, kTileColumns);
}

/// Brings the rows of a panel into the L2 cache, a part at a time, while the panel before it is at work: memory is as
/// slow as the sums where there are few rows.
template <class T>
class Prefetch {
 public:
  MODERNBERT_FAST_INLINE Prefetch(const LinearArgs& a, index_t first, index_t parts)
      : row_(static_cast<const char*>(a.b.data) + first * a.b.stride * index_t(sizeof(T))),
        stride_(a.b.stride * index_t(sizeof(T))),
        bytes_(a.K * index_t(sizeof(T))),
        rows_(a.b.transposed ? 0 : smaller(a.N - first, kTileColumns)) {
    part_ = (rows_ * ((bytes_ + kLine - 1) / kLine) + parts - 1) / parts;
  }
  MODERNBERT_FAST_INLINE void next() {
    for (index_t i = 0; i < part_ && rows_ > 0; ++i) {
      __builtin_prefetch(row_ + byte_, 0, 2);
      byte_ += kLine;
      if (byte_ < bytes_) continue;
      byte_ = 0;
      row_ += stride_;
      --rows_;
    }
  }

 private:
  static constexpr index_t kLine = 64;
  const char* row_;
  index_t stride_, bytes_, rows_, part_, byte_ = 0;
};

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
  float* const panels = scratch;                                // (columns / kTileColumns, K, kTileColumns)
  float* const block = panels + a.columns * a.K;                // (kLinearRows, linear_depth(K))
  float* const sums = block + kLinearRows * linear_depth(a.K);  // (kLinearRows, kTileColumns)
  const bool direct = is_same<T, float> && !a.a.transposed;
  index_t packed = -1;  // the first of the columns that panels hold
  for (index_t unit = begin; unit < end; ++unit) {
    const index_t n0 = unit / blocks * a.columns, m0 = unit % blocks * kLinearRows;
    const index_t columns = smaller(a.N - n0, a.columns), rows = smaller(a.M - m0, kLinearRows);
    const float* x = block;
    index_t x_stride = linear_depth(a.K);
    if (direct) {
      x = static_cast<const float*>(a.a.data) + m0 * a.a.stride;
      x_stride = a.a.stride;
    } else {
      pack_block<T>(a, m0, rows, block);
    }
    const bool fresh = packed != n0;
    packed = n0;
    const index_t coming = !fresh ? 0 : blocks == 1 && unit + 1 < end ? a.N : n0 + columns;  // columns yet to be packed
    const index_t tiles = (a.K / kLinearDepth + 1) * ((rows + kTileRows - 1) / kTileRows);
    for (index_t n = 0; n < columns; n += kTileColumns) {
      float* const panel = panels + n * a.K;
      if (fresh) pack_panel<T>(a, n0 + n, panel);
      const index_t next = n0 + n + kTileColumns;
      Prefetch<T> prefetch(a, next < coming ? next : a.N, tiles);
      for (index_t k = 0; k < a.K || k == 0; k += kLinearDepth)
        for (index_t m = 0; m < rows; m += kTileRows) {
          prefetch.next();
          tile_rows(smaller(rows - m, kTileRows), x + m * x_stride + k, x_stride, 1, panel + k * kTileColumns,
                    kTileColumns, smaller(a.K - k, kLinearDepth), sums + m * kTileColumns, kTileColumns, k);
        }
      for (index_t m = 0; m < rows; ++m) {
        const float* const sum = sums + m * kTileColumns;
        T* const y = static_cast<T*>(a.y) + (m0 + m) * a.N + n0 + n;
        const T* const bias = a.bias ? static_cast<const T*>(a.bias) + n0 + n : nullptr;
        for_row(smaller(columns - n, kTileColumns), [&](index_t c, auto lanes, int) MODERNBERT_FAST_LAMBDA {
          store(y + c, bias ? load(sum + c) + load(bias + c, lanes) : load(sum + c), lanes);
        });
      }
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
