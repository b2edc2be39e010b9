// What every CPU binding needs between torch's tensors and the loops' pointers.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "../checks.h"
#include "dtype.h"

namespace modernbert_fast::cpu {

// The calls into torch that these avoid cost as much as a short loop.
inline Tensor as_contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }
inline Tensor as_dtype(const Tensor& x, ScalarType dtype) {
  return x.scalar_type() == dtype ? x : torch::stable::to(x, dtype);
}

/// x itself if its last dimension is contiguous, else a contiguous copy: the loops take any stride between rows.
inline Tensor with_contiguous_rows(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.size(last) <= 1 || x.stride(last) == 1 ? x : torch::stable::contiguous(x);
}

/// cu_seqlens (B + 1,) int32, contiguous, after a check that it rises from 0 to total.
inline Tensor checked_bounds(const Tensor& cu_seqlens, int64_t total) {
  check_dim(cu_seqlens, "cu_seqlens", 1);
  check_dtype(cu_seqlens, "cu_seqlens", {ScalarType::Int});
  const int64_t B = cu_seqlens.size(0) - 1;
  check(B >= 0, "cu_seqlens must be (B + 1,), got ", cu_seqlens);
  Tensor bounds = as_contiguous(cu_seqlens);
  const int32_t* start = static_cast<const int32_t*>(bounds.const_data_ptr());
  check(start[0] == 0, "cu_seqlens must start at 0, got ", start[0]);
  for (int64_t b = 0; b < B; ++b)
    check(start[b] <= start[b + 1], "cu_seqlens must not decrease: cu_seqlens[", b + 1, "] = ", start[b + 1], " after ",
          start[b]);
  check(start[B] == total, "cu_seqlens must end at total = ", total, ", got ", start[B]);
  return bounds;
}

inline DType loop_dtype(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kHalf;
    default: return DType::kFloat;
  }
}

/// Uninitialised and contiguous. The C function takes a third of the time of torch::stable::new_empty.
inline Tensor new_tensor(const int64_t* sizes, int64_t dim, ScalarType dtype) {
  std::vector<int64_t> strides(dim, 1);
  for (int64_t axis = dim - 1; axis > 0; --axis) strides[axis - 1] = strides[axis] * std::max<int64_t>(sizes[axis], 1);
  const int32_t dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dim, sizes, strides.data(), dtype_code, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline Tensor new_tensor(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return new_tensor(sizes.begin(), static_cast<int64_t>(sizes.size()), dtype);
}

/// Uninitialised floats on a cache line boundary: scratch of one thread.
class Scratch {
 public:
  explicit Scratch(index_t count)
      : data_(static_cast<float*>(::operator new(count * sizeof(float), std::align_val_t{64}))) {}
  float* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> data_;
};

/// Calls body(begin, end) on torch's threads, in pieces of at least kGrain elements of work.
template <class Body>
void parallel_rows(index_t rows, index_t elements_per_row, const Body& body) {
  constexpr index_t kGrain = 32768;
  const index_t grain = std::max<index_t>(1, kGrain / std::max<index_t>(1, elements_per_row));
  torch::stable::parallel_for(0, rows, grain, body);
}

}  // namespace modernbert_fast::cpu
