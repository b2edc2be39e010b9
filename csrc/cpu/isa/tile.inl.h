// Tiles of matrix products held in registers, and the packing that feeds them. Linear, attention and maxsim use them.

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr index_t kTileRows = 12;  // 24 accumulators of 32 registers
#else
constexpr index_t kTileRows = 6;  // 12 of 16
#endif
constexpr index_t kTileVecs = 2;
constexpr index_t kTileColumns = kTileVecs * kLanes;

// Steps of the inner sum between two visits to the accumulators in memory: a panel of b this deep fits the L1 cache
// (16 KiB with AVX2).
constexpr index_t kTileDepth = kLinearDepth;

MODERNBERT_FAST_INLINE index_t whole_tiles(index_t n) { return (n + kTileColumns - 1) / kTileColumns * kTileColumns; }

// A product says what its operands are made of: a of Elements, of which kPack at a time meet one lane of b.

struct Fp32Product {
  using Element = float;
  template <class T>
  using Unit = T;  // that packing makes one lane of
  static constexpr index_t kPack = 1;
  static constexpr index_t kRows = kTileRows;  // that multiply() takes
  static MODERNBERT_FAST_INLINE Vec broadcast(const float* a) { return splat(*a); }
  static MODERNBERT_FAST_INLINE Vec add(Vec a, Vec b, Vec sum) { return fused(a, b, sum); }
};

/// What a tile may do beside each step of its sum: nothing, or to bring the data of a later one into the L2 cache. In
/// between the products, because a burst of requests would fill the queue that loads need. One line a step: beyond 64
/// bytes a step, which only products of up to 32 rows ask for, some lines are left out.
struct Nothing {
  MODERNBERT_FAST_INLINE void operator()(index_t) const {}
};
struct Ahead {
  const char* first;
  index_t bytes;  // a step
  MODERNBERT_FAST_INLINE void operator()(index_t k) const { __builtin_prefetch(first + k * bytes, 0, 2); }
};

/// c[r][n] = (c[r][n] +) the sum over k < K of a[r][k] * b[k][n], in the order of k, for r < kRows and n <
/// kVecs * kLanes. Rows of a are a_stride apart and its columns a_step, in Elements; columns of b and c are contiguous.
/// An element's sum depends neither on kRows nor on kVecs, so a row of a product is the same in any company. What is
/// accumulated joins last: sums of sums are more accurate than one long sum.
template <class Product, index_t kRows, index_t kVecs, class Beside>
void tile(const typename Product::Element* a, index_t a_stride, index_t a_step, const float* b, index_t b_stride,
          index_t K, float* c, index_t c_stride, bool accumulate, Beside beside) {
  Vec acc[kRows][kVecs];
  for (index_t r = 0; r < kRows; ++r)
    for (index_t v = 0; v < kVecs; ++v) acc[r][v] = Vec{};
  for (index_t k = 0; k < K; ++k) {
    beside(k);
    Vec row[kVecs];
#pragma GCC unroll 2
    for (index_t v = 0; v < kVecs; ++v) row[v] = load(b + k * b_stride + v * kLanes);
#pragma GCC unroll 12
    for (index_t r = 0; r < kRows; ++r) {
      const Vec scale = Product::broadcast(a + r * a_stride + k * a_step);
#pragma GCC unroll 2
      for (index_t v = 0; v < kVecs; ++v) acc[r][v] = Product::add(scale, row[v], acc[r][v]);
    }
  }
  for (index_t r = 0; r < kRows; ++r)
    for (index_t v = 0; v < kVecs; ++v) {
      float* const sum = c + r * c_stride + v * kLanes;
      store(sum, accumulate ? load(sum) + acc[r][v] : acc[r][v]);
    }
}

/// tile() for any number of rows up to kRows.
template <class Product = Fp32Product, index_t kVecs = kTileVecs, index_t kRows = kTileRows, class Beside = Nothing>
MODERNBERT_FAST_INLINE void tile_rows(index_t rows, const typename Product::Element* a, index_t a_stride,
                                      index_t a_step, const float* b, index_t b_stride, index_t K, float* c,
                                      index_t c_stride, bool accumulate, Beside beside = {}) {
  if (rows == kRows) {
    tile<Product, kRows, kVecs>(a, a_stride, a_step, b, b_stride, K, c, c_stride, accumulate, beside);
  } else if constexpr (kRows > 1) {
    tile_rows<Product, kVecs, kRows - 1>(rows, a, a_stride, a_step, b, b_stride, K, c, c_stride, accumulate, beside);
  }
}

// ---- packing: any element type to fp32, zero where there is nothing

/// One step of a block transposition: swaps the kStep x kStep blocks off the diagonal of each 2 kStep x 2 kStep block.
template <index_t kStep>
MODERNBERT_FAST_INLINE void transpose_step(Vec (&rows)[kLanes]) {
  Bits upper, lower;
  for (index_t i = 0; i < kLanes; ++i) {
    upper[i] = i & kStep ? kLanes + i - kStep : i;
    lower[i] = i & kStep ? kLanes + i : i + kStep;
  }
#pragma GCC unroll 16
  for (index_t i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    const Vec a = rows[i], b = rows[i + kStep];
    rows[i] = __builtin_shuffle(a, b, upper);
    rows[i + kStep] = __builtin_shuffle(a, b, lower);
  }
  if constexpr (kStep > 1) transpose_step<kStep / 2>(rows);
}

/// y[c][r] = x[r][c] for r < rows <= kLanes and c < columns; y is zero for rows <= r < kLanes.
template <class T>
void pack_transposed(const T* x, index_t x_stride, index_t rows, index_t columns, float* y, index_t y_stride) {
  index_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    Vec block[kLanes];
#pragma GCC unroll 16
    for (index_t r = 0; r < kLanes; ++r) block[r] = r < rows ? load(x + r * x_stride + c) : Vec{};
    transpose_step<kLanes / 2>(block);
#pragma GCC unroll 16
    for (index_t r = 0; r < kLanes; ++r) store(y + (c + r) * y_stride, block[r]);
  }
  if (c == columns) return;
  Vec block[kLanes];
  for (index_t r = 0; r < kLanes; ++r) block[r] = r < rows ? load(x + r * x_stride + c, Partial{columns - c}) : Vec{};
  transpose_step<kLanes / 2>(block);
  for (index_t r = 0; c < columns; ++c, ++r) store(y + c * y_stride, block[r]);
}

/// y[r][c] = x[r][c] for c < columns, zero up to padded_columns.
template <class T>
void pack_rows(const T* x, index_t x_stride, index_t rows, index_t columns, float* y, index_t y_stride,
               index_t padded_columns) {
  for (index_t r = 0; r < rows; ++r) {
    float* const out = y + r * y_stride;
    for_row(columns, [&](index_t c, auto lanes, int)
                         MODERNBERT_FAST_LAMBDA { store(out + c, load(x + r * x_stride + c, lanes), lanes); });
    for (index_t c = columns; c < padded_columns; ++c) out[c] = 0;
  }
}
