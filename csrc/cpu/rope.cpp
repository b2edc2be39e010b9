// Rotary position embedding: checks, allocation, threads. The loop is in rope.inl.h.
#include "rope.h"

#include <torch/csrc/stable/library.h>

#include "binding.h"
#include "isa/isa.h"

namespace modernbert_fast::cpu {

namespace {

Tensor rope_forward(const Tensor& qkv_in, const Tensor& positions_in, const Tensor& cos_in, const Tensor& sin_in) {
  check_heads(qkv_in);
  const index_t T = qkv_in.size(0), H = qkv_in.size(2), D = qkv_in.size(3);
  const RotaryTables tables(qkv_in, positions_in, cos_in, sin_in);
  const Tensor qkv = with_contiguous_rows(qkv_in);
  Tensor y = new_tensor({T, 3, H, D}, qkv.scalar_type());

  RopeArgs args;
  args.dtype = loop_dtype(qkv);
  args.qkv = qkv.const_data_ptr();
  args.stride_t = qkv.stride(0);
  args.stride_part = qkv.stride(1);
  args.stride_h = qkv.stride(2);
  args.rotary = tables.get();
  args.y = y.mutable_data_ptr();
  args.H = H;
  args.D = D;

  Rope* const loop = loops().rope;
  parallel_rows(T, 3 * H * D, [&](index_t begin, index_t end) { loop(args, begin, end); });
  return y;
}

}  // namespace

}  // namespace modernbert_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, CPU, m) {
  using namespace modernbert_fast::cpu;
  m.impl("rope_forward", TORCH_BOX(&rope_forward));
}
