// Where bindings meet torch's device. The host executor has a header of this name (tests/simt/include), found first:
// include it as <device.h>.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "launch.cuh"

// The dispatch key of STABLE_TORCH_LIBRARY_IMPL.
#define MODERNBERT_FAST_DEVICE CUDA

namespace modernbert_fast::cuda {

/// For as long as it lives, the device of x is the current one.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const torch::stable::Tensor& x) : index_(x.get_device_index()), guard_(index_) {}
  /// The compute capability of the device, such as 75 or 90.
  int chip() const {
    int major = 0, minor = 0;
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index_));
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index_));
    return 10 * major + minor;
  }
  /// Whether the device has the tensor core instructions of 9.0, which no other one has.
  bool has_wgmma() const { return chip() == 90; }
  /// The stream that torch works on there.
  cudaStream_t stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

/// out = a b, and with a bias out = bias + a b: torch's own products, past the dispatcher.
inline void product(const torch::stable::Tensor& out, const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
}
inline void product(const torch::stable::Tensor& out, const torch::stable::Tensor& a, const torch::stable::Tensor& b,
                    const torch::stable::Tensor& bias) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(out.get(), bias.get(), a.get(), b.get(), 1, 1));
}

}  // namespace modernbert_fast::cuda
