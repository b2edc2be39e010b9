// What every CUDA binding needs between torch's tensors and the kernels' pointers.
#pragma once

#include <device.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <instructions.cuh>

#include <vector>

#include "../checks.h"
#include "../tensors.h"
#include "launch.cuh"

namespace modernbert_fast::cuda {

/// Uninitialised and contiguous, on the device of x.
inline Tensor new_tensor(const Tensor& x, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::new_empty(x, sizes, dtype);
}

template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

template <class T>
struct Type {
  using type = T;
};

/// body(Type<T>()) with T the element type of x: float, Half or BFloat16.
template <class Body>
void with_type(const Tensor& x, const Body& body) {
  switch (x.scalar_type()) {
    case ScalarType::BFloat16: return body(Type<BFloat16>());
    case ScalarType::Half: return body(Type<Half>());
    default: return body(Type<float>());
  }
}

/// body(std::true_type()) or body(std::false_type()).
template <class Body>
void with_bool(bool value, const Body& body) {
  value ? body(std::true_type()) : body(std::false_type());
}

}  // namespace modernbert_fast::cuda
