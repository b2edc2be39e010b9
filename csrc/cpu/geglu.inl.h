// GeGLU: gelu of the first half of a row times the second. Reference: modernbert_fast/reference/geglu.py

/// The share of a normal distribution below a.
MODERNBERT_FAST_INLINE Vec normal_cdf(Vec a) {
  constexpr float kSqrtHalf = 0.70710678f;
  return 0.5f + 0.5f * erf_of(a * kSqrtHalf);
}

template <class T>
void geglu_forward_as(const GegluForwardArgs& args, index_t begin, index_t end) {
  const index_t F = args.F;
  for (index_t t = begin; t < end; ++t) {
    const T* x = static_cast<const T*>(args.x) + t * args.x_stride;
    T* y = static_cast<T*>(args.y) + t * F;
    for_row(F, [&](index_t f, auto lanes, int) MODERNBERT_FAST_LAMBDA {
      const Vec a = load(x + f, lanes), b = load(x + F + f, lanes);
      store(y + f, a * normal_cdf(a) * b, lanes);
    });
  }
}

void geglu_forward(const GegluForwardArgs& args, index_t begin, index_t end) {
  switch (args.dtype) {
    case DType::kFloat: return geglu_forward_as<float>(args, begin, end);
    case DType::kBFloat16: return geglu_forward_as<BFloat16>(args, begin, end);
    case DType::kHalf: return geglu_forward_as<Half>(args, begin, end);
  }
}

template <class T>
void geglu_backward_as(const GegluBackwardArgs& args, index_t begin, index_t end) {
  constexpr float kInverseSqrtTwoPi = 0.39894228f;
  const index_t F = args.F;
  for (index_t t = begin; t < end; ++t) {
    const T* dy = static_cast<const T*>(args.dy) + t * args.dy_stride;
    const T* x = static_cast<const T*>(args.x) + t * args.x_stride;
    T* dx = static_cast<T*>(args.dx) + t * 2 * F;
    for_row(F, [&](index_t f, auto lanes, int) MODERNBERT_FAST_LAMBDA {
      const Vec g = load(dy + f, lanes), a = load(x + f, lanes), b = load(x + F + f, lanes);
      const Vec cdf = normal_cdf(a);
      const Vec density = kInverseSqrtTwoPi * exp_of(-0.5f * a * a);
      store(dx + f, g * b * (cdf + a * density), lanes);
      store(dx + F + f, g * (a * cdf), lanes);
    });
  }
}

void geglu_backward(const GegluBackwardArgs& args, index_t begin, index_t end) {
  switch (args.dtype) {
    case DType::kFloat: return geglu_backward_as<float>(args, begin, end);
    case DType::kBFloat16: return geglu_backward_as<BFloat16>(args, begin, end);
    case DType::kHalf: return geglu_backward_as<Half>(args, begin, end);
  }
}
