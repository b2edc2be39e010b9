// Rotary position embedding: checks, allocation, threads. The loop is in rope.inl.h.
#include "rope.h"

#include <torch/csrc/stable/library.h>

#include "binding.h"
#include "isa/isa.h"

namespace modernbert_fast::cpu {

namespace {

Tensor rope_forward(const Tensor& qkv_in, const Tensor& positions_in, const Tensor& cos_in, const Tensor& sin_in) {
  check_dim(qkv_in, "qkv", 4);
  check_dtype(qkv_in, "qkv", {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  const index_t T = qkv_in.size(0), H = qkv_in.size(2), D = qkv_in.size(3);
  check(qkv_in.size(1) == 3 && D % 2 == 0, "qkv must be (T, 3, H, D) with D even, got ", qkv_in);
  check_shape(positions_in, "positions", {T}, "(T,)");
  check_dtype(positions_in, "positions", {ScalarType::Int, ScalarType::Long});
  check_same_device(positions_in, "positions", qkv_in, "qkv");
  check_dim(cos_in, "cos", 2);
  const index_t P = cos_in.size(0);
  const auto check_table = [&](const Tensor& table, const char* name) {
    check_shape(table, name, {P, D / 2}, "(P, D / 2)");
    check_dtype(table, name, {ScalarType::Float});
    check_same_device(table, name, qkv_in, "qkv");
  };
  check_table(cos_in, "cos");
  check_table(sin_in, "sin");

  const Tensor positions = as_contiguous(as_dtype(positions_in, ScalarType::Long));
  const int64_t* position = static_cast<const int64_t*>(positions.const_data_ptr());
  for (index_t t = 0; t < T; ++t)
    check_index(position[t] >= 0 && position[t] < P, "positions[", t, "] = ", position[t], " is outside [0, ", P, ")");

  const Tensor qkv = with_contiguous_rows(qkv_in), cos = as_contiguous(cos_in), sin = as_contiguous(sin_in);
  Tensor y = new_tensor({T, 3, H, D}, qkv.scalar_type());

  RopeArgs args;
  args.dtype = loop_dtype(qkv);
  args.qkv = qkv.const_data_ptr();
  args.stride_t = qkv.stride(0);
  args.stride_part = qkv.stride(1);
  args.stride_h = qkv.stride(2);
  args.positions = position;
  args.cos = static_cast<const float*>(cos.const_data_ptr());
  args.sin = static_cast<const float*>(sin.const_data_ptr());
  args.y = y.mutable_data_ptr();
  args.H = H;
  args.D = D;
  parallel_rows(T, 3 * H * D, [&](index_t begin, index_t end) { loops().rope(args, begin, end); });
  return y;
}

}  // namespace

}  // namespace modernbert_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, CPU, m) {
  using namespace modernbert_fast::cpu;
  m.impl("rope_forward", TORCH_BOX(&rope_forward));
}
