// Matrix products in fp32, whatever the element type. Reference: modernbert_fast/reference/linear.py

// A panel makes as many columns of y as its tile has, or with glu half as many: the first vector of a tile's rows then
// holds a, the second b of gelu(a) * b.
static_assert(kTileVecs == 2, "one for each half");

template <bool kGlu>
constexpr index_t kPanelColumns = kGlu ? kLanes : kTileColumns;

/// The rows of b that make columns [first, first + kPanelColumns) of y -> (K, kTileColumns), zero beyond the last.
template <class T, bool kGlu>
void pack_panel(const LinearArgs& a, index_t first, float* panel) {
  const T* const b = static_cast<const T*>(a.b.data);
  const index_t columns = smaller(a.N - first, kPanelColumns<kGlu>);
  if (a.b.transposed) return pack_rows(b + first, a.b.stride, a.K, columns, panel, kTileColumns, kTileColumns);
  for (index_t v = 0; v < kTileVecs; ++v) {
    const index_t row = first + v * (kGlu ? a.N : kLanes), rows = columns - (kGlu ? 0 : v * kLanes);
    pack_transposed(b + row * a.b.stride, a.b.stride, smaller(larger(rows, 0), kLanes), a.K, panel + v * kLanes,
                    kTileColumns);
  }
}

/// Brings the rows of a panel into the L2 cache, a part at a time, while the panel before it is at work: memory is as
/// slow as the sums where there are few rows.
template <class T, bool kGlu>
class Prefetch {
 public:
  MODERNBERT_FAST_INLINE Prefetch(const LinearArgs& a, index_t first, index_t parts)
      : b_(static_cast<const char*>(a.b.data)),
        stride_(a.b.stride * index_t(sizeof(T))),
        bytes_(a.K * index_t(sizeof(T))),
        rows_(a.b.transposed ? 0 : smaller(a.N - first, kPanelColumns<kGlu>)),
        row_(first),
        end_(first + rows_),
        second_(kGlu ? a.N + first : end_) {
    part_ = (rows_ * (kGlu ? 2 : 1) * ((bytes_ + kLine - 1) / kLine) + parts - 1) / parts;
  }
  MODERNBERT_FAST_INLINE void next() {
    for (index_t i = 0; i < part_; ++i) {
      if (row_ == end_) {
        if (row_ >= second_) return;
        row_ = second_;
        end_ = second_ + rows_;
      }
      __builtin_prefetch(b_ + row_ * stride_ + byte_, 0, 2);
      byte_ += kLine;
      if (byte_ < bytes_) continue;
      byte_ = 0;
      ++row_;
    }
  }

 private:
  static constexpr index_t kLine = 64;
  const char* b_;
  index_t stride_, bytes_, rows_, row_, end_, second_, part_, byte_ = 0;
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

/// What storing it as T and loading it again makes of it: the fused op returns the bits of the two.
template <class T>
MODERNBERT_FAST_INLINE Vec rounded(Vec value) {
  T stored[kLanes];
  store(stored, value);
  return load(stored);
}

/// A row of a panel's sums -> y[0..columns).
template <class T, bool kGlu>
MODERNBERT_FAST_INLINE void write_row(const LinearArgs& a, const float* sum, index_t first, index_t columns, T* y) {
  const T* const bias = static_cast<const T*>(a.bias);
  for_row(columns, [&](index_t c, auto lanes, int) MODERNBERT_FAST_LAMBDA {
    Vec value = load(sum + c);
    if (bias) value += load(bias + first + c, lanes);
    if constexpr (kGlu) {
      Vec gate = load(sum + kLanes + c);
      if (bias) gate += load(bias + a.N + first + c, lanes);
      value = gelu_of(rounded<T>(value)).value * rounded<T>(gate);
    }
    store(y + c, value, lanes);
  });
}

template <class T, bool kGlu>
void linear_as(const LinearArgs& a, index_t begin, index_t end, float* scratch) {
  constexpr index_t kColumns = kPanelColumns<kGlu>;
  const index_t blocks = (a.M + kLinearRows - 1) / kLinearRows;
  float* const panels = scratch;                                            // (columns / kColumns, K, kTileColumns)
  float* const block = panels + a.columns / kColumns * a.K * kTileColumns;  // (kLinearRows, linear_depth(K))
  float* const sums = block + kLinearRows * linear_depth(a.K);              // (kLinearRows, kTileColumns)
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
    const index_t tiles = (a.K / kTileDepth + 1) * ((rows + kTileRows - 1) / kTileRows);
    for (index_t n = n0; n < n0 + columns; n += kColumns) {
      float* const panel = panels + (n - n0) / kColumns * a.K * kTileColumns;
      if (fresh) pack_panel<T, kGlu>(a, n, panel);
      Prefetch<T, kGlu> prefetch(a, n + kColumns < coming ? n + kColumns : a.N, tiles);
      for (index_t k = 0; k < a.K || k == 0; k += kTileDepth)
        for (index_t m = 0; m < rows; m += kTileRows) {
          prefetch.next();
          tile_rows(smaller(rows - m, kTileRows), x + m * x_stride + k, x_stride, 1, panel + k * kTileColumns,
                    kTileColumns, smaller(a.K - k, kTileDepth), sums + m * kTileColumns, kTileColumns, k);
        }
      for (index_t m = 0; m < rows; ++m)
        write_row<T, kGlu>(a, sums + m * kTileColumns, n, smaller(n0 + columns - n, kColumns),
                           static_cast<T*>(a.y) + (m0 + m) * a.N + n);
    }
  }
}

template <class T>
void linear_or_glu(const LinearArgs& a, index_t begin, index_t end, float* scratch) {
  a.glu ? linear_as<T, true>(a, begin, end, scratch) : linear_as<T, false>(a, begin, end, scratch);
}

void linear(const LinearArgs& a, index_t begin, index_t end, float* scratch) {
  switch (a.dtype) {
    case DType::kFloat: return linear_or_glu<float>(a, begin, end, scratch);
    case DType::kBFloat16: return linear_or_glu<BFloat16>(a, begin, end, scratch);
    case DType::kHalf: return linear_or_glu<Half>(a, begin, end, scratch);
  }
}

/// The sum of `rows` rows, each `stride` after the one before: of halves, down to a few. One chain would drift.
template <class T, class Lanes>
Vec sum_rows_of(const T* x, index_t stride, index_t rows, Lanes lanes) {
  constexpr index_t kFew = 16;
  if (rows > kFew) {
    const index_t half = rows / 2;
    return sum_rows_of(x, stride, half, lanes) + sum_rows_of(x + half * stride, stride, rows - half, lanes);
  }
  Vec sum = {};
  for (index_t r = 0; r < rows; ++r) sum += load(x + r * stride, lanes);
  return sum;
}

template <class T>
void column_sum_as(const ColumnSumArgs& a, index_t begin, index_t end) {
  const T* const x = static_cast<const T*>(a.x);
  for (index_t c = begin; c < end; c += kLanes) {
    const Partial lanes{smaller(end - c, kLanes)};
    store(static_cast<T*>(a.y) + c, sum_rows_of(x + c, a.stride, a.rows, lanes), lanes);
  }
}

void column_sum(const ColumnSumArgs& a, index_t begin, index_t end) {
  switch (a.dtype) {
    case DType::kFloat: return column_sum_as<float>(a, begin, end);
    case DType::kBFloat16: return column_sum_as<BFloat16>(a, begin, end);
    case DType::kHalf: return column_sum_as<Half>(a, begin, end);
  }
}
