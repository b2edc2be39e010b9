// Any element type to fp32.

template <class T>
void to_float_from(const T* x, index_t n, float* y) {
  for_row(n, [&](index_t i, auto lanes, int) MODERNBERT_FAST_LAMBDA { store(y + i, load(x + i, lanes), lanes); });
}

void to_float(const void* x, DType dtype, index_t n, float* y) {
  switch (dtype) {
    case DType::kFloat: return to_float_from(static_cast<const float*>(x), n, y);
    case DType::kBFloat16: return to_float_from(static_cast<const BFloat16*>(x), n, y);
    case DType::kHalf: return to_float_from(static_cast<const Half*>(x), n, y);
  }
}
