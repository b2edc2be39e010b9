// GeGLU: gelu of the first half of a row times the second. Reference: modernbert_fast/reference/geglu.py
#include <torch/csrc/stable/library.h>

#include "../checks/geglu.h"
#include "binding.h"
#include "bindings.h"
#include "warp.cuh"

namespace modernbert_fast::cuda {

namespace {

constexpr int kMostThreads = 256;

/// The share of a normal distribution below a.
__device__ __forceinline__ float cdf_of(float a) { return 0.5f * (1 + erff(a * 0.70710678f)); }

/// A thread takes kPack elements of each half at a time, a block one row after another.
template <class T, int kPack>
__global__ void __launch_bounds__(kMostThreads)
    geglu_forward_kernel(const T* x, int64_t x_stride, T* y, int64_t rows, int64_t F) {
  for (int64_t t = blockIdx.x; t < rows; t += gridDim.x)
    for (int64_t f = threadIdx.x * int64_t{kPack}; f < F; f += blockDim.x * int64_t{kPack}) {
      T a[kPack], b[kPack];
      load(a, x + t * x_stride + f);
      load(b, x + t * x_stride + F + f);
#pragma unroll
      for (int i = 0; i < kPack; ++i) a[i] = from_float<T>(to_float(a[i]) * cdf_of(to_float(a[i])) * to_float(b[i]));
      store(y + t * F + f, a);
    }
}

template <class T, int kPack>
__global__ void __launch_bounds__(kMostThreads)
    geglu_backward_kernel(const T* dy, int64_t dy_stride, const T* x, int64_t x_stride, T* dx, int64_t rows,
                          int64_t F) {
  for (int64_t t = blockIdx.x; t < rows; t += gridDim.x)
    for (int64_t f = threadIdx.x * int64_t{kPack}; f < F; f += blockDim.x * int64_t{kPack}) {
      T g[kPack], a[kPack], b[kPack];
      load(g, dy + t * dy_stride + f);
      load(a, x + t * x_stride + f);
      load(b, x + t * x_stride + F + f);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float gi = to_float(g[i]), ai = to_float(a[i]), bi = to_float(b[i]);
        const float cdf = cdf_of(ai), density = 0.39894228f * expf(-0.5f * ai * ai);
        a[i] = from_float<T>(gi * bi * (cdf + ai * density));
        b[i] = from_float<T>(gi * ai * cdf);
      }
      store(dx + t * 2 * F + f, a);
      store(dx + t * 2 * F + F + f, b);
    }
}

/// Threads that share a row of that many packs evenly: whole warps, each thread as often as the next.
dim3 threads_for(int64_t packs) {
  const int64_t turns = ceil_div(packs, kMostThreads);
  return dim3(static_cast<unsigned>(ceil_div(ceil_div(packs, turns), kWarp) * kWarp));
}

}  // namespace

Tensor geglu_forward(const Tensor& x_in) {
  check_geglu(x_in);
  const OnDeviceOf device(x_in);
  const Tensor x = with_contiguous_rows(x_in);
  const int64_t rows = x.size(0), F = x.size(1) / 2;
  Tensor y = new_tensor(x, {rows, F}, x.scalar_type());
  if (y.numel() == 0) return y;
  with_type(x, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = [&](auto* kernel, int pack) {
      launch(kernel, grid_of(rows), threads_for(F / pack), 0, device.stream(), data<T>(x), x.stride(0),
             mutable_data<T>(y), rows, F);
    };
    if (rows_of_16(data<T>(x), x.stride(0)) && rows_of_16(data<T>(y), F))
      run(geglu_forward_kernel<T, kPerPack<T>>, kPerPack<T>);
    else
      run(geglu_forward_kernel<T, 1>, 1);
  });
  return y;
}

namespace {

Tensor geglu_backward(const Tensor& dy_in, const Tensor& x_in) {
  check_geglu_backward(dy_in, x_in);
  const OnDeviceOf device(x_in);
  const Tensor dy = with_contiguous_rows(dy_in), x = with_contiguous_rows(x_in);
  const int64_t rows = x.size(0), F = x.size(1) / 2;
  Tensor dx = new_tensor(x, {rows, 2 * F}, x.scalar_type());
  if (dx.numel() == 0) return dx;
  with_type(x, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = [&](auto* kernel, int pack) {
      launch(kernel, grid_of(rows), threads_for(F / pack), 0, device.stream(), data<T>(dy), dy.stride(0), data<T>(x),
             x.stride(0), mutable_data<T>(dx), rows, F);
    };
    if (rows_of_16(data<T>(dy), dy.stride(0)) && rows_of_16(data<T>(x), x.stride(0)) && rows_of_16(data<T>(dx), F))
      run(geglu_backward_kernel<T, kPerPack<T>>, kPerPack<T>);
    else
      run(geglu_backward_kernel<T, 1>, 1);
  });
  return dx;
}

}  // namespace

}  // namespace modernbert_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, MODERNBERT_FAST_DEVICE, m) {
  using namespace modernbert_fast::cuda;
  m.impl("geglu_forward", TORCH_BOX(&geglu_forward));
  m.impl("geglu_backward", TORCH_BOX(&geglu_backward));
}
