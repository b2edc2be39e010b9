// The smallest real operator: proves that kernels of this build run on the device at hand.
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../checks.h"

namespace modernbert_fast::cuda {

namespace {

__global__ void build_probe_kernel(int* arch) {
#ifdef __CUDA_ARCH__
  *arch = __CUDA_ARCH__;
#endif
}

void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) fail<std::runtime_error>("CUDA: ", cudaGetErrorString(error));
}

int64_t build_probe(const Tensor& x) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  const Tensor arch = torch::stable::new_empty(x, {1}, ScalarType::Int);
  build_probe_kernel<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<int*>(arch.mutable_data_ptr()));
  check_cuda(cudaGetLastError());
  int value = 0;
  check_cuda(cudaMemcpyAsync(&value, arch.const_data_ptr(), sizeof(value), cudaMemcpyDeviceToHost,
                             static_cast<cudaStream_t>(stream)));
  check_cuda(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
  return value;
}

}  // namespace

}  // namespace modernbert_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, CUDA, m) {
  m.impl("cuda_build_probe", TORCH_BOX(&modernbert_fast::cuda::build_probe));
}
