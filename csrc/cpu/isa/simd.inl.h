// fp32 vectors of the width this file is compiled for, and loads and stores that convert.

#if defined(MODERNBERT_FAST_LANES)  // an emulated instruction set has its width and none of its instructions
constexpr index_t kLanes = MODERNBERT_FAST_LANES;
#elif defined(__AVX512F__)
constexpr index_t kLanes = 16;
#elif defined(__AVX2__)
constexpr index_t kLanes = 8;
#else
constexpr index_t kLanes = 4;
#endif
// Independent accumulators: enough to hide the latency of an add, and for a sum of 32 parts, which is what keeps layer
// norm of wide rows far from zero within 1e-6.
constexpr index_t kUnroll = kLanes < 8 ? 8 : 4;

#define MODERNBERT_FAST_INLINE inline __attribute__((always_inline))
#define MODERNBERT_FAST_LAMBDA __attribute__((always_inline))

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Bits16 __attribute__((vector_size(kLanes * 2)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

MODERNBERT_FAST_INLINE index_t smaller(index_t a, index_t b) { return a < b ? a : b; }
MODERNBERT_FAST_INLINE index_t larger(index_t a, index_t b) { return a > b ? a : b; }

template <class A, class B>
constexpr bool is_same = false;
template <class A>
constexpr bool is_same<A, A> = true;

template <class To, class From>
MODERNBERT_FAST_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

MODERNBERT_FAST_INLINE Vec splat(float value) { return value - Vec{}; }  // x - 0 is x, x + 0 is not: -0

/// The bits of value in every lane, whatever they stand for.
MODERNBERT_FAST_INLINE Vec splat_bits(float value) { return bit_cast<Vec>(Bits{} + bit_cast<uint32_t>(value)); }

/// a * b + c, rounded once where the processor can: the same in every loop, whatever the compiler contracts.
MODERNBERT_FAST_INLINE Vec fused(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__) && !defined(MODERNBERT_FAST_LANES)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

/// a where it is larger, else b: b where either is NaN. For the generic form GCC 12 compares and blends.
MODERNBERT_FAST_INLINE Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

/// Whether a <= b in every lane: not where either is NaN.
MODERNBERT_FAST_INLINE bool at_most(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ) == 0xffff;
#else
  const Bits yes = bit_cast<Bits>(a <= b);
  uint32_t all = yes[0];
  for (index_t i = 1; i < kLanes; ++i) all &= yes[i];
  return all;
#endif
}

/// v with lanes i and i ^ kStep exchanged.
template <index_t kStep>
MODERNBERT_FAST_INLINE Vec exchanged(Vec v) {
  Bits from;
  for (index_t i = 0; i < kLanes; ++i) from[i] = i ^ kStep;
  return __builtin_shuffle(v, from);
}

template <index_t kStep = kLanes / 2>
MODERNBERT_FAST_INLINE float largest_lane(Vec v) {
  const Vec pairs = larger(v, exchanged<kStep>(v));
  if constexpr (kStep > 1) return largest_lane<kStep / 2>(pairs);
  return pairs[0];
}

template <index_t kStep = kLanes / 2>
MODERNBERT_FAST_INLINE float sum_of_lanes(Vec v) {
  const Vec pairs = v + exchanged<kStep>(v);
  if constexpr (kStep > 1) return sum_of_lanes<kStep / 2>(pairs);
  return pairs[0];
}

#if defined(__AVX2__) && !defined(__AVX512F__)  // GCC 12 needs three times the instructions for the generic form

MODERNBERT_FAST_INLINE Bits widen(Bits16 v) { return bit_cast<Bits>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(v))); }

/// The values must fit 16 bits.
MODERNBERT_FAST_INLINE Bits16 narrow(Bits v) {
  const __m256i wide = bit_cast<__m256i>(v);
  return bit_cast<Bits16>(_mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
}

#else

MODERNBERT_FAST_INLINE Bits widen(Bits16 v) { return __builtin_convertvector(v, Bits); }
MODERNBERT_FAST_INLINE Bits16 narrow(Bits v) { return __builtin_convertvector(v, Bits16); }

#endif

// ---- one vector of each element type

MODERNBERT_FAST_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

MODERNBERT_FAST_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof(v)); }

MODERNBERT_FAST_INLINE Vec load(const BFloat16* p) {
  Bits16 half;
  __builtin_memcpy(&half, p, sizeof(half));
  return bit_cast<Vec>(widen(half) << 16);
}

MODERNBERT_FAST_INLINE void store(BFloat16* p, Vec v) {
#if defined(__AVX512BF16__)
  constexpr int kOthers = 0x20 | 0x01 | 0x80;  // subnormal numbers, which the instruction takes for zero, and NaN
  if (!_mm512_fpclass_ps_mask(v, kOthers))
    return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(_mm512_cvtneps_pbh(v)));
#endif
  const Bits bits = bit_cast<Bits>(v);
  const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
  const Bits is_nan = bit_cast<Bits>(v != v);                     // rounding could turn a NaN into infinity
  const Bits16 half = narrow((rounded & ~is_nan) | (is_nan & 0x7fc0));
  __builtin_memcpy(p, &half, sizeof(half));
}

MODERNBERT_FAST_INLINE Vec load(const int8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  Bytes bytes;
  __builtin_memcpy(&bytes, p, sizeof(bytes));
  return __builtin_convertvector(bytes, Vec);
#endif
}

#if defined(__AVX512F__)

MODERNBERT_FAST_INLINE Vec load(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

MODERNBERT_FAST_INLINE void store(Half* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(__F16C__)

MODERNBERT_FAST_INLINE Vec load(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

MODERNBERT_FAST_INLINE void store(Half* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(__aarch64__)

MODERNBERT_FAST_INLINE Vec load(const Half* p) {
  __fp16 half[kLanes];
  __builtin_memcpy(half, p, sizeof(half));
  Vec v;
  for (index_t i = 0; i < kLanes; ++i) v[i] = half[i];
  return v;
}

MODERNBERT_FAST_INLINE void store(Half* p, Vec v) {
  __fp16 half[kLanes];
  for (index_t i = 0; i < kLanes; ++i) half[i] = v[i];
  __builtin_memcpy(p, half, sizeof(half));
}

#else  // no half precision instruction: integers do it

MODERNBERT_FAST_INLINE Bits select(Bits mask, Bits a, Bits b) { return (mask & a) | (~mask & b); }

MODERNBERT_FAST_INLINE Vec load(const Half* p) {
  Bits16 half;
  __builtin_memcpy(&half, p, sizeof(half));
  const Bits h = widen(half);
  const Bits magnitude = (h & 0x7fff) << 13;
  const Bits is_special = bit_cast<Bits>(magnitude >= (0x7c00u << 13));  // infinity, NaN
  const Bits is_small = bit_cast<Bits>(magnitude < (0x0400u << 13));     // zero, subnormal
  const Bits rebased = magnitude + ((127u - 15u) << 23);
  const Bits special = magnitude | 0x7f800000u;
  const Vec smallest_normal = splat(0x1p-14f);
  const Bits small = bit_cast<Bits>(bit_cast<Vec>(magnitude | bit_cast<Bits>(smallest_normal)) - smallest_normal);
  return bit_cast<Vec>(select(is_special, special, select(is_small, small, rebased)) | (h & 0x8000) << 16);
}

MODERNBERT_FAST_INLINE void store(Half* p, Vec v) {
  const Bits bits = bit_cast<Bits>(v);
  const Bits magnitude = bits & 0x7fffffffu;
  const Bits is_nan = bit_cast<Bits>(magnitude > 0x7f800000u);
  const Bits is_large = bit_cast<Bits>(magnitude >= 0x477ff000u);  // 65520 and up round to infinity
  const Bits is_small = bit_cast<Bits>(magnitude < 0x38800000u);   // below 2^-14: a subnormal
  // Adding 0.5 leaves the subnormal, rounded by the adder to multiples of 2^-24, in the low bits.
  const Bits small = bit_cast<Bits>(bit_cast<Vec>(magnitude) + 0.5f) - 0x3f000000u;
  const Bits rebased = magnitude - ((127u - 15u) << 23);
  const Bits normal = (rebased + 0xfff + (rebased >> 13 & 1)) >> 13;
  Bits out = select(is_small, small, normal);
  out = select(is_large, Bits{} + 0x7c00, out);
  out = select(is_nan, Bits{} + 0x7e00, out) | (bits >> 16 & 0x8000);
  const Bits16 half = narrow(out);
  __builtin_memcpy(p, &half, sizeof(half));
}

#endif

// ---- whole rows: the same body sees full vectors, then at most one partial vector

struct Full {};
struct Partial {
  index_t n;  // lanes in use, 0 < n <= kLanes
};

template <class T>
MODERNBERT_FAST_INLINE Vec load(const T* p, Full) {
  return load(p);
}

/// Lanes out of use are zero.
template <class T>
MODERNBERT_FAST_INLINE Vec load(const T* p, Partial lanes) {
  T buffer[kLanes] = {};
  __builtin_memcpy(buffer, p, lanes.n * sizeof(T));
  return load(buffer);
}

template <class T>
MODERNBERT_FAST_INLINE void store(T* p, Vec v, Full) {
  store(p, v);
}

template <class T>
MODERNBERT_FAST_INLINE void store(T* p, Vec v, Partial lanes) {
  T buffer[kLanes];
  store(buffer, v);
  __builtin_memcpy(p, buffer, lanes.n * sizeof(T));
}

// ---- results larger than the caches: written past them, since nobody would find them there again

/// Whether each full vector of rows of C elements at p is aligned, as such stores require; fp32 only.
template <class T>
MODERNBERT_FAST_INLINE bool can_stream([[maybe_unused]] const T* p, [[maybe_unused]] index_t C) {
#if defined(__x86_64__) && !defined(MODERNBERT_FAST_LANES)
  return is_same<T, float> && reinterpret_cast<uintptr_t>(p) % sizeof(Vec) == 0 && C % kLanes == 0;
#else
  return false;
#endif
}

/// With stream, p must be as can_stream asks, and end_of_stream must follow.
template <class T, class Lanes>
MODERNBERT_FAST_INLINE void store(T* p, Vec v, Lanes lanes, [[maybe_unused]] bool stream) {
#if defined(__x86_64__) && !defined(MODERNBERT_FAST_LANES)
  if constexpr (is_same<T, float> && is_same<Lanes, Full>) {
    if (stream) {
#if defined(__AVX512F__)
      return _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
      return _mm256_stream_ps(p, v);
#else
      return _mm_stream_ps(p, v);
#endif
    }
  }
#endif
  store(p, v, lanes);
}

/// What was streamed is visible to other threads after this.
MODERNBERT_FAST_INLINE void end_of_stream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

/// Zeroes the lanes out of use.
MODERNBERT_FAST_INLINE Vec keep(Vec v, Full) { return v; }
MODERNBERT_FAST_INLINE Vec keep(Vec v, Partial lanes) {
  float buffer[kLanes];
  store(buffer, v);
  return load(buffer, lanes);
}

/// body(c, lanes, u): c the first column, u < kUnroll the accumulator to use.
template <class Body>
MODERNBERT_FAST_INLINE void for_row(index_t C, const Body& body) {
  index_t c = 0;
  for (; c + kUnroll * kLanes <= C; c += kUnroll * kLanes) {
    body(c + 0 * kLanes, Full{}, 0);
    body(c + 1 * kLanes, Full{}, 1);
    body(c + 2 * kLanes, Full{}, 2);
    body(c + 3 * kLanes, Full{}, 3);
    if constexpr (kUnroll == 8) {
      body(c + 4 * kLanes, Full{}, 4);
      body(c + 5 * kLanes, Full{}, 5);
      body(c + 6 * kLanes, Full{}, 6);
      body(c + 7 * kLanes, Full{}, 7);
    }
  }
  for (; c + kLanes <= C; c += kLanes) body(c, Full{}, 0);
  if (c < C) body(c, Partial{C - c}, 0);
}

struct Sum {
  Vec part[kUnroll] = {};

  MODERNBERT_FAST_INLINE float total() const {
    Vec v = (part[0] + part[1]) + (part[2] + part[3]);
    if constexpr (kUnroll == 8) v += (part[4] + part[5]) + (part[6] + part[7]);
    return sum_of_lanes(v);
  }
};
