// Products of fp32 queries with int8 documents in whole numbers (AVX-512-VNNI): a query token is a scale and 24-bit
// integers, each of three signed digits of eight bits. Three products of bytes then stand for one of fp32, four
// elements a lane, and their sums are exact: what is rounded is the query, at 2^-24 of its largest element, and the
// score, once. Tokens in which that is too much are not packed so: is_even in ../maxsim.cpp.

#if defined(__AVX512VNNI__) || defined(MODERNBERT_FAST_EMULATED_BFLOAT16)
constexpr bool kMultipliesBytes = true;
#else
constexpr bool kMultipliesBytes = false;
#endif

typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));

constexpr index_t kDigits = 3;
constexpr int32_t kLargestInteger = 127 * (256 * 256 + 256 + 1);
constexpr index_t kDigitRows = 4;     // 24 accumulators of 32 registers
constexpr index_t kMostDigits = 512;  // elements of a row: a sum, 2^15 for each, is exact in fp32 up to 2^24

/// sum + the products of four unsigned bytes of a with four signed ones of b, in each lane.
MODERNBERT_FAST_INLINE Ints add_bytes(Ints a, Ints b, Ints sum) {
#if defined(__AVX512VNNI__)
  return bit_cast<Ints>(_mm512_dpbusd_epi32(bit_cast<__m512i>(sum), bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
#else
  for (int shift = 0; shift < 32; shift += 8) sum += (a >> shift & 255) * (b << (24 - shift) >> 24);
  return sum;
#endif
}

MODERNBERT_FAST_INLINE index_t quads_of(index_t D) { return (D + 3) / 4; }

// A panel of kTileColumns query tokens: a row of what their scores are multiplied by (fp32), a row for each digit of
// where its sums start, then for every four elements a row for each digit. Documents are offset by 128, for the
// instruction takes one side unsigned: sums start at -128 times the sum of the digits.
constexpr index_t kFirstSums = 1, kFirstDigits = kFirstSums + kDigits;

/// Columns of a panel (rows, kTileColumns) of the tokens x (tokens, D), zero where there is none. A token with an
/// element that is not finite has NaN for a scale, so all its scores are NaN.
void pack_digits(const float* x, index_t x_stride, index_t tokens, index_t D, float* panel) {
  const index_t rows = kFirstDigits + kDigits * quads_of(D);
  memset(panel, 0, rows * kTileColumns * sizeof(float));
  int32_t* const sums = reinterpret_cast<int32_t*>(panel + kFirstSums * kTileColumns);
  int8_t* const digits = reinterpret_cast<int8_t*>(panel + kFirstDigits * kTileColumns);
  for (index_t t = 0; t < tokens; ++t) {
    const float* const row = x + t * x_stride;
    float largest = 0, zero = 0;
    for (index_t k = 0; k < D; ++k) {
      largest = __builtin_fabsf(row[k]) > largest ? __builtin_fabsf(row[k]) : largest;
      zero += row[k] * 0;  // or NaN
    }
    panel[t] = static_cast<float>(static_cast<double>(largest) / kLargestInteger) + zero;
    if (!(largest > 0) || zero != 0) continue;
    const double scale = kLargestInteger / static_cast<double>(largest);
    for (index_t k = 0; k < D; ++k) {
      int32_t rest = static_cast<int32_t>(__builtin_rint(row[k] * scale));
      for (index_t digit = 0; digit < kDigits; ++digit) {
        const int8_t low = static_cast<int8_t>(rest);
        rest = (rest - low) / 256;  // exact: what is left of the low eight bits is zero
        digits[((k / 4 * kDigits + digit) * kTileColumns + t) * 4 + k % 4] = low;
        sums[digit * kTileColumns + t] -= 128 * low;
      }
    }
  }
}

/// y (rows, 4 quads) = x (rows, D) + 128, as unsigned bytes; what lies beyond D meets digits that are zero.
void pack_offset(const int8_t* x, index_t x_stride, index_t rows, index_t D, uint8_t* y) {
  const index_t y_stride = 4 * quads_of(D);
  for (index_t r = 0; r < rows; ++r)
    for (index_t k = 0; k < D; ++k) y[r * y_stride + k] = static_cast<uint8_t>(x[r * x_stride + k]) ^ 0x80;
}

/// scores (kRows, kTileColumns) of document tokens d (kRows, 4 quads), before the scales of the query tokens.
template <index_t kRows, class Beside>
void tile_digits(const uint8_t* d, index_t quads, const float* panel, float* scores, Beside beside) {
  Ints sum[kRows][kDigits][kTileVecs];
  const auto row_of = [panel](index_t row, index_t v) MODERNBERT_FAST_LAMBDA {
    return bit_cast<Ints>(load(panel + row * kTileColumns + v * kLanes));
  };
  for (index_t r = 0; r < kRows; ++r)
    for (index_t digit = 0; digit < kDigits; ++digit)
      for (index_t v = 0; v < kTileVecs; ++v) sum[r][digit][v] = row_of(kFirstSums + digit, v);
  for (index_t k = 0; k < quads; ++k) {
    beside(k);
    Ints four[kRows];
#pragma GCC unroll 4
    for (index_t r = 0; r < kRows; ++r) {
      int32_t bytes;
      __builtin_memcpy(&bytes, d + (r * quads + k) * 4, sizeof(bytes));
      four[r] = Ints{} + bytes;
    }
#pragma GCC unroll 3
    for (index_t digit = 0; digit < kDigits; ++digit)
#pragma GCC unroll 2
      for (index_t v = 0; v < kTileVecs; ++v) {
        const Ints q = row_of(kFirstDigits + k * kDigits + digit, v);
#pragma GCC unroll 4
        for (index_t r = 0; r < kRows; ++r) sum[r][digit][v] = add_bytes(four[r], q, sum[r][digit][v]);
      }
  }
  for (index_t r = 0; r < kRows; ++r)
    for (index_t v = 0; v < kTileVecs; ++v) {
      Vec score = __builtin_convertvector(sum[r][0][v], Vec);
      score = fused(__builtin_convertvector(sum[r][1][v], Vec), splat(0x1p8f), score);
      score = fused(__builtin_convertvector(sum[r][2][v], Vec), splat(0x1p16f), score);
      store(scores + r * kTileColumns + v * kLanes, score);
    }
}

/// tile_digits() for any number of rows up to kRows.
template <index_t kRows = kDigitRows, class Beside>
MODERNBERT_FAST_INLINE void digit_rows(index_t rows, const uint8_t* d, index_t quads, const float* panel, float* scores,
                                       Beside beside) {
  if (rows == kRows) {
    tile_digits<kRows>(d, quads, panel, scores, beside);
  } else if constexpr (kRows > 1) {
    digit_rows<kRows - 1>(rows, d, quads, panel, scores, beside);
  }
}
