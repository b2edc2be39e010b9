// What the bindings of attention and rope ask of their arguments, on any device.
#pragma once

#include <optional>

#include "../checks.h"

namespace modernbert_fast {

inline void check_heads(const Tensor& qkv) {
  check_dim(qkv, "qkv", 4);
  check_dtype(qkv, "qkv", {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  check(qkv.size(1) == 3, "qkv must be (T, 3, H, D), got ", qkv);
}

inline void check_rotary(const Tensor& qkv, const Tensor& positions, const Tensor& cos, const Tensor& sin) {
  check(qkv.size(3) % 2 == 0, "qkv must be (T, 3, H, D) with D even, got ", qkv);
  check_shape(positions, "positions", {qkv.size(0)}, "(T,)");
  check_dtype(positions, "positions", {ScalarType::Int, ScalarType::Long});
  check_same_device(positions, "positions", qkv, "qkv");
  check_dim(cos, "cos", 2);
  const auto check_table = [&](const Tensor& table, const char* name) {
    check_shape(table, name, {cos.size(0), qkv.size(3) / 2}, "(P, D / 2)");
    check_dtype(table, name, {ScalarType::Float});
    check_same_device(table, name, qkv, "qkv");
  };
  check_table(cos, "cos");
  check_table(sin, "sin");
  check_index(cos.size(0) > 0 || qkv.size(0) == 0, "no position is a row of cos and sin, which are ", cos);
}

inline void check_attention(const Tensor& qkv, const Tensor& cu_seqlens, const std::optional<Tensor>& positions,
                            const std::optional<Tensor>& cos, const std::optional<Tensor>& sin,
                            const std::optional<Tensor>& columns, const std::optional<Tensor>& attended,
                            const Tensor& tiles, int64_t window) {
  check_heads(qkv);
  check_same_device(cu_seqlens, "cu_seqlens", qkv, "qkv");
  check_shape(tiles, "tiles", {tiles.dim() ? tiles.size(0) : 0, 2}, "(N, 2)");
  check(window >= -1, "window must be -1 (global) or a distance >= 0, got ", window);
  check(positions.has_value() == cos.has_value() && cos.has_value() == sin.has_value(),
        "positions, cos and sin come together or not at all");
  if (positions) check_rotary(qkv, *positions, *cos, *sin);
  const auto check_of_tokens = [&](const std::optional<Tensor>& tensor, const char* name, ScalarType dtype) {
    if (!tensor) return;
    check_shape(*tensor, name, {qkv.size(0)}, "(T,)");
    check_dtype(*tensor, name, {dtype});
    check_same_device(*tensor, name, qkv, "qkv");
  };
  check_of_tokens(columns, "columns", ScalarType::Int);
  check_of_tokens(attended, "attended", ScalarType::Bool);
}

inline void check_attention_backward(const Tensor& d_o, const Tensor& qkv, const Tensor& o, const Tensor& lse) {
  const int64_t T = qkv.size(0), H = qkv.size(2), D = qkv.size(3);
  check_shape(d_o, "do", {T, H, D}, "(T, H, D)");
  check_floating(d_o, "do");
  check_shape(o, "o", {T, H, D}, "(T, H, D)");
  check_shape(lse, "lse", {H, T}, "(H, T)");
  check_same_device(d_o, "do", qkv, "qkv");
}

}  // namespace modernbert_fast
