// What every CUDA binding needs between torch's tensors and the kernels' pointers.
#pragma once

#include <device.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <instructions.cuh>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "../checks.h"
#include "../tensors.h"
#include "launch.cuh"

namespace modernbert_fast::cuda {

/// Uninitialised and contiguous, on the device of x. The C function takes a third of the time of
/// torch::stable::new_empty.
inline Tensor new_tensor(const Tensor& x, const int64_t* sizes, int64_t dim, ScalarType dtype) {
  std::vector<int64_t> strides(dim, 1);
  for (int64_t axis = dim - 1; axis > 0; --axis) strides[axis - 1] = strides[axis] * std::max<int64_t>(sizes[axis], 1);
  const int32_t dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device_type));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dim, sizes, strides.data(), dtype_code, device_type, x.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor new_tensor(const Tensor& x, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return new_tensor(x, sizes.begin(), static_cast<int64_t>(sizes.size()), dtype);
}

/// The memory of x by other sizes and strides, from where x starts.
inline Tensor strided(const Tensor& x, std::initializer_list<int64_t> sizes, std::initializer_list<int64_t> strides) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(x.get(), static_cast<int64_t>(sizes.size()), sizes.begin(),
                                                        strides.begin(), 0, &handle));
  return Tensor(handle);
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
