// What the bindings of a whole layer ask of its matrices, on any device; its parts ask the rest.
#pragma once

#include <optional>

#include "../checks.h"

namespace modernbert_fast {

inline void check_encoder_layer(const Tensor& x, const std::optional<Tensor>& residual,
                                const std::optional<Tensor>& attn_norm, const std::optional<Tensor>& attn_norm_bias,
                                const Tensor& Wqkv, const Tensor& attn_Wo, const Tensor& mlp_norm, const Tensor& Wi,
                                const Tensor& mlp_Wo, int64_t head_dim) {
  check_dim(x, "x", 2);
  check_dim(Wqkv, "Wqkv", 2);
  check_dim(Wi, "Wi", 2);
  const int64_t C = x.size(1), F = Wi.size(0) / 2;
  check(head_dim > 0 && Wqkv.size(0) % (3 * head_dim) == 0, "Wqkv must have 3 rows for each element of heads of ",
        head_dim, ", got ", Wqkv);
  check(Wi.size(0) % 2 == 0, "Wi must be (2 F, C), got ", Wi);
  const auto check_matrix = [&](const Tensor& tensor, const char* name, int64_t rows, int64_t columns) {
    check_shape(tensor, name, {rows, columns}, "(rows, columns)");
    check_dtype(tensor, name, {x.scalar_type()});
    check_same_device(tensor, name, x, "x");
  };
  check_matrix(Wqkv, "Wqkv", Wqkv.size(0), C);
  check_matrix(attn_Wo, "attn_Wo", C, Wqkv.size(0) / 3);
  check_matrix(Wi, "Wi", 2 * F, C);
  check_matrix(mlp_Wo, "mlp_Wo", C, F);
  check_shape(mlp_norm, "mlp_norm", {C}, "(C,)");
  if (residual) check_matrix(*residual, "residual", x.size(0), C);
  check(attn_norm || !(residual || attn_norm_bias), "a residual and a bias need an attn_norm");
}

}  // namespace modernbert_fast
