// Rotary position embedding, half-split form. Reference: modernbert_fast/reference/rope.py

constexpr bool kForward = false, kInverse = true;

/// x (D,) of a token -> y (D,), which may be x.
template <bool kBack = kForward, class X, class Y>
MODERNBERT_FAST_INLINE void rotate(const X* x, const Rotary& rotary, index_t token, Y* y) {
  const index_t half = rotary.half, row = rotary.positions[token] * half;
  for_row(half, [&](index_t i, auto lanes, int) MODERNBERT_FAST_LAMBDA {
    const Vec first = load(x + i, lanes), second = load(x + half + i, lanes);
    const Vec c = load(rotary.cos + row + i, lanes), forward = load(rotary.sin + row + i, lanes);
    const Vec s = kBack ? -forward : forward;
    store(y + i, first * c - second * s, lanes);
    store(y + half + i, second * c + first * s, lanes);
  });
}

template <class T>
void rope_as(const RopeArgs& a, index_t begin, index_t end) {
  const index_t H = a.H, D = a.D;
  for (index_t t = begin; t < end; ++t) {
    for (index_t part = 0; part < 3; ++part) {
      const T* x = static_cast<const T*>(a.qkv) + t * a.stride_t + part * a.stride_part;
      T* y = static_cast<T*>(a.y) + (t * 3 + part) * H * D;
      for (index_t h = 0; h < H; ++h) {
        if (part < 2)
          rotate(x + h * a.stride_h, a.rotary, t, y + h * D);
        else  // v
          memcpy(y + h * D, x + h * a.stride_h, D * sizeof(T));
      }
    }
  }
}

void rope(const RopeArgs& a, index_t begin, index_t end) {
  switch (a.dtype) {
    case DType::kFloat: return rope_as<float>(a, begin, end);
    case DType::kBFloat16: return rope_as<BFloat16>(a, begin, end);
    case DType::kHalf: return rope_as<Half>(a, begin, end);
  }
}
