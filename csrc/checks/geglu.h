// What geglu's bindings ask of their arguments, on any device.
#pragma once

#include "../checks.h"

namespace modernbert_fast {

inline void check_geglu(const Tensor& x) {
  check_dim(x, "x", 2);
  check_dtype(x, "x", {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  check(x.size(1) % 2 == 0, "the last dimension of x holds two halves and must be even, got shape ", x);
}

inline void check_geglu_backward(const Tensor& dy, const Tensor& x) {
  check_geglu(x);
  check_shape(dy, "dy", {x.size(0), x.size(1) / 2}, "(T, F)");
  check_dtype(dy, "dy", {x.scalar_type()});
  check_same_device(dy, "dy", x, "x");
}

}  // namespace modernbert_fast
