// exp and erf of fp32 vectors.
// Every polynomial is a Remez fit (in 50 digits, coefficients then rounded) of the function that its comment names,
// weighted so that the error it leaves in the result is level: relative, except for erf beyond 1, where it is absolute.
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

/// Within 1.0 ulp, subnormal results too; 0 and infinity at the ends, NaN stays NaN.
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

/// exp_of for x <= 0 in fewer steps: results below 2^-126 are 0. NaN stays NaN.
MODERNBERT_FAST_INLINE Vec exp_not_positive(Vec x) {
  const Vec lowest = splat(-88.0f);  // n is -127 there, and 2^n below is 0
  x = x < lowest ? lowest : x;
  const Rounded n = round_of(x * kLog2E);
  return exp_reduced(x, n) * bit_cast<Vec>((n.bits + 127) << 23);
}

/// Within 1.3 ulp with FMA, 1.6 without; odd, and NaN stays NaN.
MODERNBERT_FAST_INLINE Vec erf_of(Vec x) {
  const Bits sign = bit_cast<Bits>(x) & 0x80000000u;
  const Vec magnitude = bit_cast<Vec>(bit_cast<Bits>(x) ^ sign);

  // erf(x) / x - 1 as a function of x^2, for |x| <= 1
  const Vec square = x * x;
  const Vec near = x + x * polynomial(square, 0.128379166f, -0.376126258f, 0.112835851f, -0.0268538119f, 0.00518832767f,
                                      -0.000801019353f, 7.85386109e-5f);

  // log2(1 - erf(x)) for 1 <= x <= 4; beyond, erf(x) is 1
  const Vec last = splat(4.0f);
  const Vec e = polynomial(magnitude < last ? magnitude : last, -0.000510310767f, -1.62597506f, -0.920765029f,
                           -0.148651492f, 0.0314584204f, -0.00424095581f, 0.000267726594f);
  const Rounded n = round_of(e);
  // 2^r for |r| <= 1/2
  const Vec p =
      polynomial(e - n.value, 1.00000007f, 0.693146966f, 0.240221176f, 0.0555071448f, 0.00967565551f, 0.00132763581f);
  const Vec far = 1.0f - bit_cast<Vec>(bit_cast<Bits>(p) + (n.bits << 23));

  return magnitude > 1.0f ? bit_cast<Vec>(bit_cast<Bits>(far) | sign) : near;
}
