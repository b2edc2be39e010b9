// csrc/cuda/device.h for the host: CPU tensors stand for those of a GPU.
#pragma once

#include <cuda_runtime.h>
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

}  // namespace modernbert_fast::cuda
