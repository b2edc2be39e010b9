// Layouts that kernels read: what the CPU and CUDA bindings make of a tensor before they take its pointer.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace modernbert_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The calls into torch that these avoid cost as much as a short loop.
inline Tensor as_contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }
inline Tensor as_dtype(const Tensor& x, ScalarType dtype) {
  return x.scalar_type() == dtype ? x : torch::stable::to(x, dtype);
}

/// x itself if its last dimension is contiguous, else a contiguous copy: the kernels take any stride between rows.
inline Tensor with_contiguous_rows(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.size(last) <= 1 || x.stride(last) == 1 ? x : torch::stable::contiguous(x);
}

/// x (R, *) as rows of bytes: trailing dimensions contiguous, any stride between rows.
struct RowsOfBytes {
  Tensor x;
  int64_t row_bytes = 1;
  int64_t stride_bytes = 0;

  explicit RowsOfBytes(const Tensor& tensor) : x(tensor) {
    int64_t row = 1;
    bool packed = true;
    for (int64_t axis = x.dim() - 1; axis > 0; --axis) {
      packed = packed && (x.size(axis) <= 1 || x.stride(axis) == row);
      row *= x.size(axis);
    }
    if (!packed) x = as_contiguous(x);
    row_bytes = row * x.element_size();
    stride_bytes = x.stride(0) * static_cast<int64_t>(x.element_size());
  }
};

}  // namespace modernbert_fast
