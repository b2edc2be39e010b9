// csrc/cuda/device.h for the host: CPU tensors stand for those of a GPU.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/tensor.h>

#define MODERNBERT_FAST_DEVICE CPU

namespace modernbert_fast::cuda {

class OnDeviceOf {
 public:
  explicit OnDeviceOf(const torch::stable::Tensor&) {}
  /// Runs the code of every chip.
  int chip() const { return 1000; }
  bool has_wgmma() const { return true; }
  cudaStream_t stream() const { return nullptr; }
};

/// out = a b, and with a bias out = bias + a b: torch's own products, past the dispatcher.
inline void product(const torch::stable::Tensor& out, const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}
inline void product(const torch::stable::Tensor& out, const torch::stable::Tensor& a, const torch::stable::Tensor& b,
                    const torch::stable::Tensor& bias) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), bias.get(), a.get(), b.get(), 1, 1));
}

}  // namespace modernbert_fast::cuda
