// Layer norm: checks, allocation, threads. The loops are in layer_norm.inl.h.
#include "layer_norm.h"

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../checks/layer_norm.h"
#include "binding.h"
#include "bindings.h"
#include "isa/isa.h"

namespace modernbert_fast::cpu {

namespace {

// Rows whose weight gradient is one partial sum: fixed, so that the result does not depend on the number of threads.
constexpr index_t kRowsPerBlock = 64;

float* float_data(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

/// weight or bias (C,) in fp32; `absent` everywhere if there is none.
class Affine {
 public:
  Affine(const std::optional<Tensor>& parameter, index_t C, float absent) {
    if (!parameter) {
      values_.assign(C, absent);
      return;
    }
    tensor_ = as_contiguous(*parameter);
    if (parameter->scalar_type() == ScalarType::Float) return;
    values_.resize(C);
    loops().to_float(tensor_->const_data_ptr(), loop_dtype(*parameter), C, values_.data());
  }
  const float* data() const {
    return values_.empty() ? static_cast<const float*>(tensor_->const_data_ptr()) : values_.data();
  }

 private:
  std::optional<Tensor> tensor_;
  std::vector<float> values_;
};

/// Normalises rows of x: all of them in order, or those that ids name.
LayerNormResult forward(const Tensor& x_in, const std::optional<Tensor>& ids, const std::optional<Tensor>& residual_in,
                        const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps) {
  const Tensor x = with_contiguous_rows(x_in);
  const index_t T = ids ? ids->size(0) : x.size(0), C = x.size(1);
  std::optional<Tensor> residual;
  if (residual_in) residual = with_contiguous_rows(*residual_in);
  const Tensor& stream = residual ? *residual : x;  // holds the dtype of what is normalised
  const Affine w(weight, C, 1.0f), b(bias, C, 0.0f);

  Tensor y = new_tensor({T, C}, stream.scalar_type());
  Tensor sum = residual ? new_tensor({T, C}, stream.scalar_type()) : new_tensor({0}, x.scalar_type());
  Tensor mean = new_tensor({T}, ScalarType::Float);
  Tensor rstd = new_tensor({T}, ScalarType::Float);

  LayerNormForwardArgs args;
  args.x_dtype = loop_dtype(x);
  args.y_dtype = loop_dtype(stream);
  args.x = x.const_data_ptr();
  args.x_stride = x.stride(0);
  args.ids = ids ? static_cast<const int64_t*>(ids->const_data_ptr()) : nullptr;
  args.residual = residual ? residual->const_data_ptr() : nullptr;
  args.residual_stride = residual ? residual->stride(0) : 0;
  args.weight = w.data();
  args.bias = b.data();
  args.sum = sum.mutable_data_ptr();
  args.y = y.mutable_data_ptr();
  args.mean = float_data(mean);
  args.rstd = float_data(rstd);
  args.C = C;
  args.eps = static_cast<float>(eps);
  args.stream = outgrows_caches(y);

  LayerNormForward* const loop = loops().layer_norm_forward;
  parallel_rows(T, C,
                [&](index_t begin, index_t end) { loop(args, begin, end, Scratch(layer_norm_scratch(C)).get()); });
  return {y, sum, mean, rstd};
}

}  // namespace

LayerNormResult layer_norm_forward(const Tensor& x, const std::optional<Tensor>& residual,
                                   const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps) {
  check_layer_norm(x, residual, weight, bias);
  return forward(x, std::nullopt, residual, weight, bias, eps);
}

namespace {

std::tuple<Tensor, Tensor, Tensor> layer_norm_embed_forward(const Tensor& ids, const Tensor& table,
                                                            const std::optional<Tensor>& weight,
                                                            const std::optional<Tensor>& bias, double eps) {
  check_layer_norm_embed(ids, table, weight, bias);
  const Tensor wide = as_contiguous(as_dtype(ids, ScalarType::Long));
  const int64_t* data = static_cast<const int64_t*>(wide.const_data_ptr());
  const index_t V = table.size(0);
  for (index_t t = 0; t < wide.size(0); ++t)
    check_index(data[t] >= 0 && data[t] < V, "ids[", t, "] = ", data[t], " is outside the vocabulary [0, ", V, ")");
  auto [y, sum, mean, rstd] = forward(table, wide, std::nullopt, weight, bias, eps);
  return {y, mean, rstd};
}

/// partial (blocks, C) -> (C,)
Tensor reduce(const Tensor& partial, index_t blocks, index_t C) {
  Tensor total = new_tensor({C}, ScalarType::Float);
  parallel_rows(C, blocks, [&](index_t begin, index_t end) {
    loops().layer_norm_reduce(float_data(partial), blocks, C, begin, end, float_data(total));
  });
  return total;
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& dy_in, const std::optional<Tensor>& dsum_in,
                                                       const Tensor& x_in, const std::optional<Tensor>& weight,
                                                       bool has_bias, const Tensor& mean_in, const Tensor& rstd_in) {
  check_layer_norm_backward(dy_in, dsum_in, x_in, weight, mean_in, rstd_in);
  const index_t T = x_in.size(0), C = x_in.size(1);
  const Tensor x = with_contiguous_rows(x_in), dy = with_contiguous_rows(dy_in);
  const Tensor mean = as_contiguous(mean_in), rstd = as_contiguous(rstd_in);
  std::optional<Tensor> dsum;
  if (dsum_in) dsum = with_contiguous_rows(*dsum_in);
  const Affine w(weight, C, 1.0f);

  const index_t blocks = (T + kRowsPerBlock - 1) / kRowsPerBlock;
  const auto partial_sums = [&](bool wanted) { return new_tensor({wanted ? blocks : 0, C}, ScalarType::Float); };
  const Tensor dweight = partial_sums(weight.has_value()), dbias = partial_sums(has_bias);
  Tensor dx = new_tensor({T, C}, x.scalar_type());

  LayerNormBackwardArgs args;
  args.dtype = loop_dtype(x);
  args.dy = dy.const_data_ptr();
  args.dy_stride = dy.stride(0);
  args.dsum = dsum ? dsum->const_data_ptr() : nullptr;
  args.dsum_stride = dsum ? dsum->stride(0) : 0;
  args.x = x.const_data_ptr();
  args.x_stride = x.stride(0);
  args.weight = w.data();
  args.mean = static_cast<const float*>(mean.const_data_ptr());
  args.rstd = static_cast<const float*>(rstd.const_data_ptr());
  args.dx = dx.mutable_data_ptr();
  args.dweight = weight ? float_data(dweight) : nullptr;
  args.dbias = has_bias ? float_data(dbias) : nullptr;
  args.C = C;

  LayerNormBackward* const loop = loops().layer_norm_backward;
  parallel_rows(blocks, kRowsPerBlock * C, [&](index_t begin, index_t end) {
    const Scratch scratch(layer_norm_scratch(C));
    for (index_t block = begin; block < end; ++block)
      loop(args, block * kRowsPerBlock, std::min(T, (block + 1) * kRowsPerBlock), block, scratch.get());
  });
  // Each absent result is a tensor of its own: the schema says that results do not alias.
  const auto none = [&] { return new_tensor({0}, ScalarType::Float); };
  return {dx, weight ? reduce(dweight, blocks, C) : none(), has_bias ? reduce(dbias, blocks, C) : none()};
}

}  // namespace

}  // namespace modernbert_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, CPU, m) {
  using namespace modernbert_fast::cpu;
  m.impl("layer_norm_forward", TORCH_BOX(&layer_norm_forward));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
  m.impl("layer_norm_embed_forward", TORCH_BOX(&layer_norm_embed_forward));
}
