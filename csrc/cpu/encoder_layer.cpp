// A whole layer, from the bindings of its ops: one call from Python where there are eight, and each product brings the
// weights of the next one near.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../checks/encoder_layer.h"
#include "bindings.h"

namespace modernbert_fast::cpu {

namespace {

using Optional = std::optional<Tensor>;

/// Values of the geometry are checked by attention, before it reads them.
/// x and residual (T, C), of which the second may be absent -> the output of the MLP and the residual to add to it.
std::tuple<Tensor, Tensor> encoder_layer_forward(
    const Tensor& x, const Optional& residual, const Optional& attn_norm, const Optional& attn_norm_bias,
    double attn_norm_eps, const Tensor& Wqkv, const Optional& Wqkv_bias, const Tensor& attn_Wo,
    const Optional& attn_Wo_bias, const Tensor& mlp_norm, const Optional& mlp_norm_bias, double mlp_norm_eps,
    const Tensor& Wi, const Optional& Wi_bias, const Tensor& mlp_Wo, const Optional& mlp_Wo_bias, int64_t head_dim,
    const Tensor& cu_seqlens, const Optional& positions, const Optional& cos, const Optional& sin,
    const Optional& columns, const Optional& attended, const Tensor& tiles, int64_t max_seqlen, int64_t window,
    double scale) {
  check_encoder_layer(x, residual, attn_norm, attn_norm_bias, Wqkv, attn_Wo, mlp_norm, Wi, mlp_Wo, head_dim);
  const int64_t T = x.size(0), H = Wqkv.size(0) / (3 * head_dim);
  Tensor stream = x;
  // Each result goes when the next is made: at 8,192 tokens it is tens of megabytes.
  Tensor inner = x;
  if (attn_norm) {
    const auto [y, sum, mean, rstd] = layer_norm_forward(x, residual, attn_norm, attn_norm_bias, attn_norm_eps);
    inner = y;
    if (residual) stream = sum;
  }
  inner = linear_before(&attn_Wo, false, inner, Wqkv, Wqkv_bias, false);
  inner = std::get<0>(attention_forward(torch::stable::view(inner, {T, 3, H, head_dim}), cu_seqlens, positions, cos,
                                        sin, columns, attended, tiles, max_seqlen, window, scale));
  inner = linear_before(&Wi, true, torch::stable::view(inner, {T, H * head_dim}), attn_Wo, attn_Wo_bias, false);
  std::tie(inner, stream, std::ignore, std::ignore) =
      layer_norm_forward(inner, stream, mlp_norm, mlp_norm_bias, mlp_norm_eps);
  inner = linear_before(&mlp_Wo, false, inner, Wi, Wi_bias, true);
  return {linear_before(nullptr, false, inner, mlp_Wo, mlp_Wo_bias, false), stream};
}

}  // namespace

}  // namespace modernbert_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, CPU, m) {
  m.impl("encoder_layer_forward", TORCH_BOX(&modernbert_fast::cpu::encoder_layer_forward));
}
