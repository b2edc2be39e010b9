// A whole layer without gradients: one call from Python where there are eight, and no dispatcher between the kernels.
// Host code only: the kernels are those of its ops, the products torch's own.
#include <torch/csrc/stable/library.h>

#include "../checks/encoder_layer.h"
#include "../checks/linear.h"
#include "binding.h"
#include "bindings.h"

namespace modernbert_fast::cuda {

namespace {

using Optional = std::optional<Tensor>;

/// x (T, K), weight (N, K), bias (N,) or none -> (T, N), to the bit what torch's linear layer gives.
Tensor linear(const Tensor& x, const Tensor& weight, const Optional& bias) {
  check_linear(x, weight, bias);
  const int64_t N = weight.size(0), K = weight.size(1);
  const Tensor y = new_tensor(x, {x.size(0), N}, x.scalar_type());
  const Tensor transposed = strided(weight, {K, N}, {weight.stride(1), weight.stride(0)});
  if (bias)
    product(y, x, transposed, *bias);
  else
    product(y, x, transposed);
  return y;
}

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
  const OnDeviceOf device(x);
  const int64_t T = x.size(0), H = Wqkv.size(0) / (3 * head_dim);
  Tensor stream = x;
  // Each result goes when the next is made: with many tokens it is hundreds of megabytes.
  Tensor inner = x;
  if (attn_norm) {
    const auto [y, sum, mean, rstd] = layer_norm_forward(x, residual, attn_norm, attn_norm_bias, attn_norm_eps);
    inner = y;
    if (residual) stream = sum;
  }
  inner = linear(inner, Wqkv, Wqkv_bias);
  const int64_t row = H * head_dim;
  inner = std::get<0>(attention_forward(strided(inner, {T, 3, H, head_dim}, {3 * row, row, head_dim, 1}), cu_seqlens,
                                        positions, cos, sin, columns, attended, tiles, max_seqlen, window, scale));
  inner = linear(strided(inner, {T, row}, {row, 1}), attn_Wo, attn_Wo_bias);
  std::tie(inner, stream, std::ignore, std::ignore) =
      layer_norm_forward(inner, stream, mlp_norm, mlp_norm_bias, mlp_norm_eps);
  inner = geglu_forward(linear(inner, Wi, Wi_bias));
  return {linear(inner, mlp_Wo, mlp_Wo_bias), stream};
}

}  // namespace

}  // namespace modernbert_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, MODERNBERT_FAST_DEVICE, m) {
  m.impl("encoder_layer_forward", TORCH_BOX(&modernbert_fast::cuda::encoder_layer_forward));
}
