// Rotary position embedding, half-split form. Reference: modernbert_fast/reference/rope.py

/// x, y (D,); cos, sin (half,)
template <class T>
MODERNBERT_FAST_INLINE void rotate(const T* x, const float* cos, const float* sin, index_t half, T* y) {
  for_row(half, [&](index_t i, auto lanes, int) MODERNBERT_FAST_LAMBDA {
    const Vec first = load(x + i, lanes), second = load(x + half + i, lanes);
    const Vec c = load(cos + i, lanes), s = load(sin + i, lanes);
    store(y + i, first * c - second * s, lanes);
    store(y + half + i, second * c + first * s, lanes);
  });
}

template <class T>
void rope_as(const RopeArgs& a, index_t begin, index_t end) {
  const index_t H = a.H, D = a.D, half = D / 2;
  for (index_t t = begin; t < end; ++t) {
    const float* cos = a.cos + a.positions[t] * half;
    const float* sin = a.sin + a.positions[t] * half;
    for (index_t part = 0; part < 3; ++part) {
      const T* x = static_cast<const T*>(a.qkv) + t * a.stride_t + part * a.stride_part;
      T* y = static_cast<T*>(a.y) + (t * 3 + part) * H * D;
      for (index_t h = 0; h < H; ++h) {
        if (part < 2)
          rotate(x + h * a.stride_h, cos, sin, half, y + h * D);
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
