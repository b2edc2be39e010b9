// What layer norm's bindings ask of their arguments, on any device.
#pragma once

#include <optional>

#include "../checks.h"

namespace modernbert_fast {

inline void check_matrix(const Tensor& x, const char* name) {
  check_dim(x, name, 2);
  check_dtype(x, name, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  check(x.size(1) > 0, name, " must have at least one column, got shape ", x);
}

/// weight and bias (C,), of the dtype of what is normalised or fp32.
inline void check_affine(const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const Tensor& stream) {
  check(weight || !bias, "bias needs a weight");
  const auto check_parameter = [&](const std::optional<Tensor>& parameter, const char* name) {
    if (!parameter) return;
    check_shape(*parameter, name, {stream.size(1)}, "(C,)");
    check_dtype(*parameter, name, {stream.scalar_type(), ScalarType::Float});
    check_same_device(*parameter, name, stream, "x");
  };
  check_parameter(weight, "weight");
  check_parameter(bias, "bias");
}

inline void check_layer_norm(const Tensor& x, const std::optional<Tensor>& residual,
                             const std::optional<Tensor>& weight, const std::optional<Tensor>& bias) {
  check_matrix(x, "x");
  if (residual) {
    check_shape(*residual, "residual", {x.size(0), x.size(1)}, "(T, C)");
    check_dtype(*residual, "residual", {x.scalar_type(), ScalarType::Float});
    check_same_device(*residual, "residual", x, "x");
  }
  check_affine(weight, bias, residual ? *residual : x);
}

inline void check_layer_norm_embed(const Tensor& ids, const Tensor& table, const std::optional<Tensor>& weight,
                                   const std::optional<Tensor>& bias) {
  check_matrix(table, "table");
  check_dim(ids, "ids", 1);
  check_dtype(ids, "ids", {ScalarType::Int, ScalarType::Long});
  check_same_device(ids, "ids", table, "table");
  check_affine(weight, bias, table);
}

inline void check_layer_norm_backward(const Tensor& dy, const std::optional<Tensor>& dsum, const Tensor& x,
                                      const std::optional<Tensor>& weight, const Tensor& mean, const Tensor& rstd) {
  check_matrix(x, "x");
  const auto check_like_x = [&](const Tensor& tensor, const char* name) {
    check_shape(tensor, name, {x.size(0), x.size(1)}, "(T, C)");
    check_dtype(tensor, name, {x.scalar_type()});
    check_same_device(tensor, name, x, "x");
  };
  const auto check_statistic = [&](const Tensor& tensor, const char* name) {
    check_shape(tensor, name, {x.size(0)}, "(T,)");
    check_dtype(tensor, name, {ScalarType::Float});
    check_same_device(tensor, name, x, "x");
  };
  check_like_x(dy, "dy");
  if (dsum) check_like_x(*dsum, "dsum");
  check_statistic(mean, "mean");
  check_statistic(rstd, "rstd");
  check_affine(weight, std::nullopt, x);
}

}  // namespace modernbert_fast
