// The bindings that another binding calls. Each is told of in the file of its op.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../checks.h"

namespace modernbert_fast::cuda {

using LayerNormResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // y, sum, mean, rstd

LayerNormResult layer_norm_forward(const Tensor& x, const std::optional<Tensor>& residual,
                                   const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps);

Tensor geglu_forward(const Tensor& x);

std::tuple<Tensor, Tensor> attention_forward(const Tensor& qkv, const Tensor& cu_seqlens,
                                             const std::optional<Tensor>& positions, const std::optional<Tensor>& cos,
                                             const std::optional<Tensor>& sin, const std::optional<Tensor>& columns,
                                             const std::optional<Tensor>& attended, const Tensor& tiles,
                                             int64_t max_seqlen, int64_t window, double scale);

}  // namespace modernbert_fast::cuda
