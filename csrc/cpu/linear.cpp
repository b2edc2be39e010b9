// Linear layers: checks, allocation, the split among threads. The loop is in linear.inl.h.
#include "linear.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../checks/linear.h"
#include "binding.h"
#include "bindings.h"
#include "isa/isa.h"

namespace modernbert_fast::cpu {

namespace {

Operand operand(const Tensor& x, bool transposed) { return {x.const_data_ptr(), x.stride(0), transposed}; }

constexpr index_t kMostRows = 256;
constexpr index_t kMostPacked = 1 << 21;  // floats a thread packs at once, 8 MiB, if that is kLinearRows or more

/// y (M, N) of dtype `like` has, from operands that the tensors hold, whichever way. See LinearArgs.
Tensor product(const Tensor& like, const Operand& x, const Operand& w, const Tensor* bias, bool glu, index_t M,
               index_t N, index_t K, const Upcoming& next = {}) {
  Tensor y = new_tensor({M, N}, like.scalar_type());
  if (M == 0 || N == 0) return y;
  LinearArgs args{
      loop_dtype(like), x, w, bias ? bias->const_data_ptr() : nullptr, glu, y.mutable_data_ptr(), M, N, K, 0, next};
  // Many rows at a time read w less often, in shares as even as can be; few keep every thread busy. No element depends
  // on the choice.
  const auto whole = [](index_t rows) { return (rows + kLinearRows - 1) / kLinearRows * kLinearRows; };
  const index_t fitting = kMostPacked / std::max<index_t>(K, 1) / kLinearRows * kLinearRows;
  const index_t most = std::clamp(fitting, kLinearRows, kMostRows), shares = (M + most - 1) / most;
  args.rows = whole((M + shares - 1) / shares);
  while (args.rows > kLinearRows && linear_units(args) < 4 * static_cast<index_t>(torch::stable::get_num_threads()))
    args.rows = whole(args.rows / 2);
  Linear* const loop = loops().linear;
  parallel_rows(linear_units(args), args.rows * kLinearColumns * std::max<index_t>(K, 1) / 8,
                [&](index_t begin, index_t end) { loop(args, begin, end, Scratch(linear_scratch(args)).get()); });
  return y;
}

/// Rows that start at an even element where there can be such rows: loops may read pairs of bfloat16.
Tensor with_even_rows(const Tensor& x_in) {
  const Tensor x = with_contiguous_rows(x_in);
  return x.scalar_type() == ScalarType::BFloat16 && x.stride(0) % 2 && x.size(1) % 2 == 0 ? torch::stable::contiguous(x)
                                                                                          : x;
}

}  // namespace

Tensor linear_before(const Tensor* next, bool next_glu, const Tensor& x_in, const Tensor& weight_in,
                     const std::optional<Tensor>& bias_in, bool glu) {
  check_linear(x_in, weight_in, bias_in);
  check(!glu || weight_in.size(0) % 2 == 0, "weight must be (2 F, K), got ", weight_in);
  const Tensor x = with_even_rows(x_in), weight = with_contiguous_rows(weight_in);
  std::optional<Tensor> bias;
  if (bias_in) bias = as_contiguous(*bias_in);
  Upcoming upcoming{};
  if (next && next->dim() == 2 && next->is_contiguous() && next->scalar_type() == x.scalar_type())
    upcoming = {next->const_data_ptr(), next->size(0) / (next_glu ? 2 : 1), next->size(1), next_glu};
  return product(x, operand(x, false), operand(weight, false), bias ? &*bias : nullptr, glu, x.size(0),
                 weight.size(0) / (glu ? 2 : 1), x.size(1), upcoming);
}

namespace {

Tensor linear_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  return linear_before(nullptr, false, x, weight, bias, false);
}

Tensor linear_forward_geglu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  return linear_before(nullptr, false, x, weight, bias, true);
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& dy_in, const Tensor& x_in, const Tensor& weight_in,
                                                   bool need_dx, bool need_dweight, bool need_dbias) {
  check_linear(x_in, weight_in, std::nullopt);
  const index_t M = x_in.size(0), K = x_in.size(1), N = weight_in.size(0);
  check_shape(dy_in, "dy", {M, N}, "(T, N)");
  check_floating(dy_in, "dy");
  check_same_device(dy_in, "dy", x_in, "x");
  const Tensor x = with_contiguous_rows(x_in), weight = with_contiguous_rows(weight_in);
  const Tensor dy = with_even_rows(as_dtype(dy_in, x.scalar_type()));
  const auto none = [&] { return new_tensor({0}, x.scalar_type()); };
  Tensor dbias = none();
  if (need_dbias) {
    dbias = new_tensor({N}, x.scalar_type());
    const ColumnSumArgs args{loop_dtype(x), dy.const_data_ptr(), dy.stride(0), dbias.mutable_data_ptr(), M};
    ColumnSum* const loop = loops().column_sum;
    parallel_rows(N, M, [&](index_t begin, index_t end) { loop(args, begin, end); });
  }
  return {need_dx ? product(x, operand(dy, false), operand(weight, true), nullptr, false, M, K, N) : none(),
          need_dweight ? product(x, operand(dy, true), operand(x, true), nullptr, false, N, K, M) : none(), dbias};
}

}  // namespace

}  // namespace modernbert_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, CPU, m) {
  using namespace modernbert_fast::cpu;
  m.impl("linear_forward", TORCH_BOX(&linear_forward));
  m.impl("linear_forward_geglu", TORCH_BOX(&linear_forward_geglu));
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
}
