// exp, and the tail of a normal distribution, of fp32 vectors.
// Every polynomial is a Remez fit (in 50 digits, coefficients then rounded) of the function that its comment names,
// weighted so that the error it leaves in the result is level: relative for exp, absolute for the tail.
// Largest errors are against float64, over every fp32 number.

/// c0 + c1 x + c2 x^2 ...
MODERNBERT_FAST_INLINE Vec polynomial(Vec, float c0) { return splat(c0); }
template <class... Rest>
MODERNBERT_FAST_INLINE Vec polynomial(Vec x, float c0, Rest... rest) {
  return c0 + x * polynomial(x, rest...);
}

/// x rounded to an integer, |x| < 2^21: as a number, and in the low bits of an integer.
struct Rounded {
  Vec value;
  Bits bits;
};
MODERNBERT_FAST_INLINE Rounded round_of(Vec x) {
  const Vec magic = splat(0x1.8p23f);  // the sum has no room for a fraction
  const Vec shifted = x + magic;
  return {shifted - magic, bit_cast<Bits>(shifted)};
}

constexpr float kLog2E = 0x1.715476p0f;

/// exp(x) / 2^n for x near n ln 2.
MODERNBERT_FAST_INLINE Vec exp_reduced(Vec x, Rounded n) {
  // x - n ln 2, with ln 2 in two parts: n times the first is exact
  const Vec r = (x - n.value * 0x1.63p-1f) + n.value * 0x1.bd0106p-13f;
  // (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2
  const Vec q = polynomial(r, 0.499999934f, 0.166665201f, 0.0416683942f, 0.00836878041f, 0.0013814467f);
  return 1.0f + (r + r * r * q);
}

/// Within 1.02 ulp, subnormal results too; 0 and infinity at the ends, NaN stays NaN.
MODERNBERT_FAST_INLINE Vec exp_of(Vec x) {
  const Vec lowest = splat(-104.0f), highest = splat(89.0f);  // beyond these the result is 0 or infinite
  x = x < lowest ? lowest : x;
  x = x > highest ? highest : x;
  const Rounded n = round_of(x * kLog2E);
  const Vec p = exp_reduced(x, n);
  // 2^n may be out of range where p 2^n is not: in two steps. The high bits of n.bits are shifted out.
  const Bits half = n.bits >> 1, rest = n.bits - half;
  return p * bit_cast<Vec>((half + 127) << 23) * bit_cast<Vec>((rest + 127) << 23);
}

/// 2^x for x <= 0, 0 far below 2^-126: within 0.94 ulp, or with kCoarse within 3e-6, for what will be rounded to eight
/// bits. NaN stays NaN.
template <bool kCoarse>
MODERNBERT_FAST_INLINE Vec exp2_not_positive(Vec x) {
#if defined(__AVX512F__)
  const float lowest = -151.0f;  // below every subnormal
#else
  const float lowest = -127.0f;  // the power of two below is 0
#endif
  x = larger(splat(lowest), x);
  const Rounded n = round_of(x);
  const Vec r = x - n.value;
  // (2^r - 1) / r for |r| <= 1/2
  const Vec q =
      kCoarse ? polynomial(r, 0.693124175f, 0.240240991f, 0.0559064262f, 0.00958285294f)
              : polynomial(r, 0.693147182f, 0.240226477f, 0.0555033237f, 0.00961843692f, 0.0013398875f, 0.00015353362f);
  const Vec p = 1.0f + r * q;
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n.value);
#else
  return p * bit_cast<Vec>((n.bits + 127) << 23);
#endif
}

/// The share of a normal distribution beyond s >= 0, (1 - erf(s / sqrt 2)) / 2, for s <= 9: off by less than 1e-7, and
/// from 5 on falling to 0 a little faster than the truth. NaN may become a number.
MODERNBERT_FAST_INLINE Vec normal_tail_of(Vec s) {
  // (log2(tail) + 1) / s, fitted for s <= 6
  const Vec q = polynomial(s, -1.151105205f, -0.4592081958f, -0.05249618102f, 0.007063424007f, -0.0001369393677f,
                           -0.0001861789847f, 3.937742319e-5f, -2.834890104e-6f);
  const Vec e = -1.0f + s * q;
  const Rounded n = round_of(e);
  const Vec r = e - n.value;
  // (2^r - 1) / r for |r| <= 1/2
  const Vec p = polynomial(r, 0.6931469775f, 0.2402224192f, 0.05550733872f, 0.009671523271f, 0.001326471351f);
  return bit_cast<Vec>(bit_cast<Bits>(1.0f + r * p) + (n.bits << 23));
}
