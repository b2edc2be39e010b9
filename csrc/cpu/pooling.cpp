// Pooling: checks, allocation, threads. The loops are in pooling.inl.h.
#include "pooling.h"

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "binding.h"
#include "isa/isa.h"

namespace modernbert_fast::cpu {

namespace {

void check_rows(const Tensor& x, const char* name) {
  check_dim(x, name, 2);
  check_dtype(x, name, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
}

bool is_mean(const std::string& mode) {
  check(mode == "mean" || mode == "cls", "mode must be one of cls, mean, got '", mode, "'");
  return mode == "mean";
}

/// One thread sums a text, so the order of its rows is the only order; short texts share a thread.
template <class Body>
void parallel_texts(index_t B, index_t T, index_t C, const Body& body) {
  parallel_rows(B, T * C / std::max<index_t>(B, 1),
                [&](index_t begin, index_t end) { body(begin, end, Scratch(pooling_scratch(C)).get()); });
}

std::tuple<Tensor, Tensor> pooling_forward(const Tensor& x_in, const Tensor& cu_seqlens, std::string mode,
                                           bool normalize) {
  check_rows(x_in, "x");
  check_same_device(cu_seqlens, "cu_seqlens", x_in, "x");
  const Tensor x = with_contiguous_rows(x_in), bounds = checked_bounds(cu_seqlens, x.size(0));
  const index_t B = bounds.size(0) - 1, C = x.size(1);
  Tensor y = new_tensor({B, C}, x.scalar_type());
  Tensor norm = new_tensor({B}, ScalarType::Float);

  PoolingForwardArgs args;
  args.dtype = loop_dtype(x);
  args.x = x.const_data_ptr();
  args.x_stride = x.stride(0);
  args.cu_seqlens = static_cast<const int32_t*>(bounds.const_data_ptr());
  args.y = y.mutable_data_ptr();
  args.norm = static_cast<float*>(norm.mutable_data_ptr());
  args.C = C;
  args.mean = is_mean(mode);
  args.normalize = normalize;

  PoolingForward* const loop = loops().pooling_forward;
  parallel_texts(B, x.size(0), C, [&](index_t begin, index_t end, float* scratch) { loop(args, begin, end, scratch); });
  return {y, norm};
}

Tensor pooling_backward(const Tensor& dy_in, const Tensor& y_in, const Tensor& norm_in, const Tensor& cu_seqlens,
                        std::string mode, bool normalize, int64_t T) {
  check_rows(y_in, "y");
  const Tensor bounds = checked_bounds(cu_seqlens, T);
  const index_t B = bounds.size(0) - 1, C = y_in.size(1);
  check_shape(y_in, "y", {B, C}, "(B, C)");
  check_shape(dy_in, "dy", {B, C}, "(B, C)");
  check_dtype(dy_in, "dy", {y_in.scalar_type()});
  check_shape(norm_in, "norm", {B}, "(B,)");
  check_dtype(norm_in, "norm", {ScalarType::Float});
  check_same_device(cu_seqlens, "cu_seqlens", y_in, "y");
  check_same_device(dy_in, "dy", y_in, "y");
  check_same_device(norm_in, "norm", y_in, "y");
  const Tensor dy = with_contiguous_rows(dy_in), y = with_contiguous_rows(y_in), norm = as_contiguous(norm_in);
  Tensor dx = new_tensor({T, C}, y.scalar_type());

  PoolingBackwardArgs args;
  args.dtype = loop_dtype(y);
  args.dy = dy.const_data_ptr();
  args.dy_stride = dy.stride(0);
  args.y = y.const_data_ptr();
  args.y_stride = y.stride(0);
  args.norm = static_cast<const float*>(norm.const_data_ptr());
  args.cu_seqlens = static_cast<const int32_t*>(bounds.const_data_ptr());
  args.dx = dx.mutable_data_ptr();
  args.C = C;
  args.mean = is_mean(mode);
  args.normalize = normalize;

  PoolingBackward* const loop = loops().pooling_backward;
  parallel_texts(B, T, C, [&](index_t begin, index_t end, float* scratch) { loop(args, begin, end, scratch); });
  return dx;
}

}  // namespace

}  // namespace modernbert_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, CPU, m) {
  using namespace modernbert_fast::cpu;
  m.impl("pooling_forward", TORCH_BOX(&pooling_forward));
  m.impl("pooling_backward", TORCH_BOX(&pooling_backward));
}
