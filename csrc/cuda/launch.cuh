// Launching kernels: every launch is checked, and none is written <<<>>>, so that any C++ compiler reads these sources.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace modernbert_fast::cuda {

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

/// a / b, rounded up.
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// One dimension of a grid. Kernels that may get more work than this loop.
inline dim3 grid_of(int64_t blocks) {
  constexpr int64_t kMost = 0x7fffffff;
  return dim3(static_cast<unsigned>(blocks < kMost ? blocks : kMost));
}

/// kernel(args...) on the stream, with that much dynamic shared memory, which is the only kind kernels use.
/// A grid of nothing launches nothing.
template <class... Parameters, class... Args>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Args... args) {
  constexpr size_t kWithoutAsking = 48 << 10;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > kWithoutAsking)
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...));
}

}  // namespace modernbert_fast::cuda
