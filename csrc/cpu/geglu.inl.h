// GeGLU: gelu of the first half of a row times the second. Reference: modernbert_fast/reference/geglu.py

struct Gelu {
  Vec tail;   // of a normal distribution beyond |a|
  Vec value;  // a times the share of a normal distribution below a
};

MODERNBERT_FAST_INLINE Gelu gelu_of(Vec a) {
  const Vec magnitude = bit_cast<Vec>(bit_cast<Bits>(a) & 0x7fffffffu);
  const Vec last = splat(9.0f);
  const auto is_far = magnitude > last;  // the tail is nothing there
  const Vec s = is_far ? last : magnitude;
  const Vec tail = bit_cast<Vec>(bit_cast<Bits>(normal_tail_of(s)) & ~bit_cast<Bits>(is_far));
  // max(a, 0) - |a| tail; the maximum is written so that -inf is NaN, as -inf times 0 is in the reference.
  return {tail, (0.5f * a + 0.5f * magnitude) - s * tail};
}

template <class T>
void geglu_forward_as(const GegluForwardArgs& args, index_t begin, index_t end) {
  const index_t F = args.F;
  for (index_t t = begin; t < end; ++t) {
    const T* x = static_cast<const T*>(args.x) + t * args.x_stride;
    T* y = static_cast<T*>(args.y) + t * F;
    for_row(F, [&](index_t f, auto lanes, int) MODERNBERT_FAST_LAMBDA {
      // The arithmetic fills the window in which the processor would see the next loads by itself.
      __builtin_prefetch(x + args.x_stride + f);
      __builtin_prefetch(x + args.x_stride + F + f);
      const Vec a = load(x + f, lanes), b = load(x + F + f, lanes);
      store(y + f, gelu_of(a).value * b, lanes);
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
      const Gelu gelu = gelu_of(a);
      const Vec cdf = a < 0.0f ? gelu.tail : 1.0f - gelu.tail;
      const Vec density = kInverseSqrtTwoPi * exp_of(-0.5f * a * a);
      store(dx + f, g * b * (cdf + a * density), lanes);
      store(dx + F + f, g * gelu.value, lanes);
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
