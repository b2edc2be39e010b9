// Products of bfloat16 with sums in fp32, on instruction sets that have them: pairs of elements (AVX-512-BF16) or
// blocks of 16 rows (AMX). In a build that emulates these sets, plain C++ stands in for each instruction.

#if defined(__AMX_BF16__) || defined(MODERNBERT_FAST_EMULATED_AMX)
constexpr bool kMultipliesBlocks = true;
#else
constexpr bool kMultipliesBlocks = false;
#endif
#if defined(__AVX512BF16__) || defined(MODERNBERT_FAST_EMULATED_BFLOAT16)
constexpr bool kMultipliesBFloat16 = true;
#else
constexpr bool kMultipliesBFloat16 = false;
#endif

/// sum + the products of the pairs of bfloat16 in each lane
MODERNBERT_FAST_INLINE Vec add_pairs(Vec a, Vec b, Vec sum) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sum, bit_cast<__m512bh>(a), bit_cast<__m512bh>(b));
#else
  const Vec low = bit_cast<Vec>(bit_cast<Bits>(a) << 16) * bit_cast<Vec>(bit_cast<Bits>(b) << 16);
  const Bits high = Bits{} + 0xffff0000u;
  return sum + low + bit_cast<Vec>(bit_cast<Bits>(a) & high) * bit_cast<Vec>(bit_cast<Bits>(b) & high);
#endif
}

/// y[0..2 kLanes) = low, high; what bfloat16 has no normal number for may become 0.
MODERNBERT_FAST_INLINE void store_two(BFloat16* y, Vec low, Vec high) {
#if defined(__AVX512BF16__)
  const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
  __builtin_memcpy(y, &both, sizeof(both));
#else
  store(y, low);
  store(y + kLanes, high);
#endif
}
MODERNBERT_FAST_INLINE void store_two(float* y, Vec low, Vec high) {
  store(y, low);
  store(y + kLanes, high);
}

constexpr index_t kBlockRows = 16;  // of a block of AMX, which has as many columns of fp32 or pairs

/// Two neighbours in a row, as one lane of a vector.
struct Pair {
  BFloat16 element[2];
};
static_assert(sizeof(Pair) == sizeof(float), "a pair is a lane");

MODERNBERT_FAST_INLINE Vec load(const Pair* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

struct BFloat16Product {
  using Element = BFloat16;
  template <class T>
  using Unit = Pair;
  static constexpr index_t kPack = 2;
  static constexpr index_t kRows = kMultipliesBlocks ? 2 * kBlockRows : kTileRows;
  static MODERNBERT_FAST_INLINE Vec broadcast(const BFloat16* a) {
    float pair;
    __builtin_memcpy(&pair, a, sizeof(pair));
    return splat_bits(pair);
  }
  static MODERNBERT_FAST_INLINE Vec add(Vec a, Vec b, Vec sum) { return add_pairs(a, b, sum); }
  /// Whether this instruction set multiplies rows of so many elements.
  static MODERNBERT_FAST_INLINE bool fits(index_t D) {
    return kMultipliesBFloat16 && D % (kMultipliesBlocks ? 2 * kBlockRows : 2) == 0;
  }
};

// ---- packing of pairs

/// Pairs of elements one above the other: y[r / 2][c] = (x[r][c], x[r + 1][c]), zero beyond the last row and up to
/// padded_columns.
MODERNBERT_FAST_INLINE void pack_row_pairs(const BFloat16* x, index_t x_stride, index_t rows, index_t columns, float* y,
                                           index_t y_stride, index_t padded_columns) {
  for (index_t r = 0; r < rows; r += 2) {
    float* const out = y + r / 2 * y_stride;
    for_row(columns, [&](index_t c, auto lanes, int) MODERNBERT_FAST_LAMBDA {
      const BFloat16* const above = x + r * x_stride + c;
      const Bits low = bit_cast<Bits>(load(above, lanes)) >> 16;
      const Bits high = r + 1 < rows ? bit_cast<Bits>(load(above + x_stride, lanes)) : Bits{};
      store(out + c, bit_cast<Vec>(low | high), lanes);
    });
    for (index_t c = columns; c < padded_columns; ++c) out[c] = 0;
  }
}

// ---- blocks: eight registers of 16 rows x 64 bytes

#if defined(__AMX_BF16__)

// GCC's intrinsics do not say what they read: everything stored so far must be in memory.
#define MODERNBERT_FAST_STORES_BEFORE_BLOCKS() __asm__ volatile("" ::: "memory")

struct BlockConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

MODERNBERT_FAST_INLINE void begin_blocks() {
  const BlockConfig config;
  MODERNBERT_FAST_STORES_BEFORE_BLOCKS();
  _tile_loadconfig(&config);
}
MODERNBERT_FAST_INLINE void end_blocks() { _tile_release(); }

// Macros, because a register's number must be a literal.
#define MODERNBERT_FAST_BLOCK_ZERO(i) _tile_zero(i)
#define MODERNBERT_FAST_BLOCK_LOAD(i, p, stride) _tile_loadd(i, p, stride)
#define MODERNBERT_FAST_BLOCK_STORE(i, p, stride) _tile_stored(i, p, stride)
#define MODERNBERT_FAST_BLOCK_ADD(sum, a, b) _tile_dpbf16ps(sum, a, b)

#else

#define MODERNBERT_FAST_STORES_BEFORE_BLOCKS()

MODERNBERT_FAST_INLINE void begin_blocks() {}
MODERNBERT_FAST_INLINE void end_blocks() {}

struct Block {
  float lane[kBlockRows][kBlockRows];
};
inline thread_local Block blocks[8];

#define MODERNBERT_FAST_BLOCK_ZERO(i) blocks[i] = {}
#define MODERNBERT_FAST_BLOCK_LOAD(i, p, stride) load_block(blocks[i], reinterpret_cast<const char*>(p), stride)
#define MODERNBERT_FAST_BLOCK_STORE(i, p, stride) store_block(blocks[i], reinterpret_cast<char*>(p), stride)
#define MODERNBERT_FAST_BLOCK_ADD(sum, a, b) add_blocks(blocks[sum], blocks[a], blocks[b])

MODERNBERT_FAST_INLINE void load_block(Block& block, const char* p, index_t stride) {
  for (index_t r = 0; r < kBlockRows; ++r) __builtin_memcpy(block.lane[r], p + r * stride, sizeof(block.lane[r]));
}
MODERNBERT_FAST_INLINE void store_block(const Block& block, char* p, index_t stride) {
  for (index_t r = 0; r < kBlockRows; ++r) __builtin_memcpy(p + r * stride, block.lane[r], sizeof(block.lane[r]));
}
MODERNBERT_FAST_INLINE void add_blocks(Block& sum, const Block& a, const Block& b) {
  for (index_t r = 0; r < kBlockRows; ++r)
    for (index_t n = 0; n < kBlockRows; ++n)
      for (index_t k = 0; k < kBlockRows; ++k)
        sum.lane[r][n] = add_pairs(splat_bits(a.lane[r][k]), splat_bits(b.lane[k][n]), splat(sum.lane[r][n]))[0];
}

#endif

/// multiply() by blocks: 2 x 2 of them. Rows of a and c up to the next multiple of 16 are read and written.
MODERNBERT_FAST_INLINE void multiply_blocks(index_t rows, const BFloat16* a, index_t a_stride, const float* b,
                                            index_t pairs, float* c, index_t c_stride, bool accumulate) {
  const index_t a_bytes = a_stride * 2, b_bytes = kTileColumns * 4, c_bytes = c_stride * 4;
  const bool both = rows > kBlockRows;
  const BFloat16* const a_lower = both ? a + kBlockRows * a_stride : a;
  float* const c_lower = c + kBlockRows * c_stride;
  MODERNBERT_FAST_STORES_BEFORE_BLOCKS();
  MODERNBERT_FAST_BLOCK_ZERO(0);
  MODERNBERT_FAST_BLOCK_ZERO(1);
  MODERNBERT_FAST_BLOCK_ZERO(2);
  MODERNBERT_FAST_BLOCK_ZERO(3);
  if (accumulate) {
    MODERNBERT_FAST_BLOCK_LOAD(0, c, c_bytes);
    MODERNBERT_FAST_BLOCK_LOAD(1, c + kBlockRows, c_bytes);
    if (both) {
      MODERNBERT_FAST_BLOCK_LOAD(2, c_lower, c_bytes);
      MODERNBERT_FAST_BLOCK_LOAD(3, c_lower + kBlockRows, c_bytes);
    }
  }
  for (index_t k = 0; k < pairs; k += kBlockRows) {
    MODERNBERT_FAST_BLOCK_LOAD(4, a + 2 * k, a_bytes);
    MODERNBERT_FAST_BLOCK_LOAD(6, b + k * kTileColumns, b_bytes);
    MODERNBERT_FAST_BLOCK_LOAD(7, b + k * kTileColumns + kBlockRows, b_bytes);
    MODERNBERT_FAST_BLOCK_ADD(0, 4, 6);
    MODERNBERT_FAST_BLOCK_ADD(1, 4, 7);
    if (!both) continue;
    MODERNBERT_FAST_BLOCK_LOAD(5, a_lower + 2 * k, a_bytes);
    MODERNBERT_FAST_BLOCK_ADD(2, 5, 6);
    MODERNBERT_FAST_BLOCK_ADD(3, 5, 7);
  }
  MODERNBERT_FAST_BLOCK_STORE(0, c, c_bytes);
  MODERNBERT_FAST_BLOCK_STORE(1, c + kBlockRows, c_bytes);
  if (!both) return;
  MODERNBERT_FAST_BLOCK_STORE(2, c_lower, c_bytes);
  MODERNBERT_FAST_BLOCK_STORE(3, c_lower + kBlockRows, c_bytes);
}

/// c = (c +) a b for up to Product::kRows rows and kVecs vectors of columns; rows of b are kTileColumns apart.
/// c has room for whole blocks of rows.
template <class Product, index_t kVecs = kTileVecs>
MODERNBERT_FAST_INLINE void multiply(index_t rows, const typename Product::Element* a, index_t a_stride, const float* b,
                                     index_t K, float* c, index_t c_stride, bool accumulate) {
  if constexpr (kMultipliesBlocks && kVecs == kTileVecs && is_same<Product, BFloat16Product>)
    multiply_blocks(rows, a, a_stride, b, K, c, c_stride, accumulate);
  else
    tile_rows<Product, kVecs>(rows, a, a_stride, Product::kPack, b, kTileColumns, K, c, c_stride, accumulate);
}

#undef MODERNBERT_FAST_STORES_BEFORE_BLOCKS
#undef MODERNBERT_FAST_BLOCK_ZERO
#undef MODERNBERT_FAST_BLOCK_LOAD
#undef MODERNBERT_FAST_BLOCK_STORE
#undef MODERNBERT_FAST_BLOCK_ADD
