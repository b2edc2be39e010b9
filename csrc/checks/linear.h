// What the bindings of a linear layer ask of its operands, on any device.
#pragma once

#include <optional>

#include "../checks.h"

namespace modernbert_fast {

inline void check_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_dim(x, "x", 2);
  check_dim(weight, "weight", 2);
  check_dtype(x, "x", {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  check_dtype(weight, "weight", {x.scalar_type()});
  check_shape(weight, "weight", {weight.size(0), x.size(1)}, "(N, K)");
  check_same_device(weight, "weight", x, "x");
  if (!bias) return;
  check_shape(*bias, "bias", {weight.size(0)}, "(N,)");
  check_dtype(*bias, "bias", {x.scalar_type()});
  check_same_device(*bias, "bias", x, "x");
}

}  // namespace modernbert_fast
