// GeGLU: checks, allocation, threads. The loops are in geglu.inl.h.
#include "geglu.h"

#include <torch/csrc/stable/library.h>

#include "../checks/geglu.h"
#include "binding.h"
#include "isa/isa.h"

namespace modernbert_fast::cpu {

namespace {

Tensor geglu_forward(const Tensor& x_in) {
  check_geglu(x_in);
  const Tensor x = with_contiguous_rows(x_in);
  const index_t T = x.size(0), F = x.size(1) / 2;
  Tensor y = new_tensor({T, F}, x.scalar_type());

  GegluForwardArgs args;
  args.dtype = loop_dtype(x);
  args.x = x.const_data_ptr();
  args.x_stride = x.stride(0);
  args.y = y.mutable_data_ptr();
  args.F = F;

  GegluForward* const loop = loops().geglu_forward;
  parallel_rows(T, 2 * F, [&](index_t begin, index_t end) { loop(args, begin, end); });
  return y;
}

Tensor geglu_backward(const Tensor& dy_in, const Tensor& x_in) {
  check_geglu_backward(dy_in, x_in);
  const index_t T = x_in.size(0), F = x_in.size(1) / 2;
  const Tensor dy = with_contiguous_rows(dy_in), x = with_contiguous_rows(x_in);
  Tensor dx = new_tensor({T, 2 * F}, x.scalar_type());

  GegluBackwardArgs args;
  args.dtype = loop_dtype(x);
  args.dy = dy.const_data_ptr();
  args.dy_stride = dy.stride(0);
  args.x = x.const_data_ptr();
  args.x_stride = x.stride(0);
  args.dx = dx.mutable_data_ptr();
  args.F = F;

  GegluBackward* const loop = loops().geglu_backward;
  parallel_rows(T, 2 * F, [&](index_t begin, index_t end) { loop(args, begin, end); });
  return dx;
}

}  // namespace

}  // namespace modernbert_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, CPU, m) {
  using namespace modernbert_fast::cpu;
  m.impl("geglu_forward", TORCH_BOX(&geglu_forward));
  m.impl("geglu_backward", TORCH_BOX(&geglu_backward));
}
