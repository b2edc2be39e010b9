// Rotary position embedding: columns d and d + D / 2 of a row are turned by the angle of its position. In fp32.
#pragma once

#include <instructions.cuh>
#include "../launch.cuh"
#include "../warp.cuh"

#include "params.h"

namespace modernbert_fast::cuda {

constexpr int kPerVector = 8;  // elements of 2 bytes in 16 bytes

/// Turns the pairs (low, high), eight of them in 16 bytes each; cos and sin name their angles.
template <class T>
__device__ __forceinline__ void turn(uint32_t (&low)[4], uint32_t (&high)[4], const float* cos, const float* sin) {
#pragma unroll
  for (int word = 0; word < 4; word += 2) {
    float c[4], s[4];
    load_16<float>(c, cos + 2 * word);
    load_16<float>(s, sin + 2 * word);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 a = unpack_2<T>(low[word + i]), b = unpack_2<T>(high[word + i]);
      const float c0 = c[2 * i], c1 = c[2 * i + 1], s0 = s[2 * i], s1 = s[2 * i + 1];
      low[word + i] = pack_2<T>(a.x * c0 - b.x * s0, a.y * c1 - b.y * s1);
      high[word + i] = pack_2<T>(b.x * c0 + a.x * s0, b.y * c1 + a.y * s1);
    }
  }
}

/// Where the angles of row t begin in the tables, whatever the row's position says.
__device__ __forceinline__ index_t angles_of(const AttentionGeometry& g, index_t t) {
  const index_t position = g.positions[t], last = g.P - 1;
  return (position < 0 ? 0 : position > last ? last : position) * (g.D / 2);
}

/// q and k, or k alone, turned into (planes, T, H, D): 16 bytes of each half a thread.
template <class T>
__global__ void turn_kernel(const AttentionGeometry g, const Plane first, const Plane second, T* to) {
  const index_t index = blockIdx.x * index_t{blockDim.x} + threadIdx.x;
  const int vectors = g.D / 2 / kPerVector;
  if (index >= g.T * g.H * vectors) return;
  const index_t row = index / vectors, t = row / g.H, head = row % g.H;
  const int column = static_cast<int>(index % vectors) * kPerVector;
  const Plane& plane = blockIdx.y == 0 ? first : second;
  const T* from = static_cast<const T*>(plane.data) + t * plane.stride_t + head * plane.stride_h + column;
  uint32_t low[4], high[4];
  load_16<uint32_t>(low, reinterpret_cast<const uint32_t*>(from));
  load_16<uint32_t>(high, reinterpret_cast<const uint32_t*>(from + g.D / 2));
  const index_t angles = angles_of(g, t) + column;
  turn<T>(low, high, g.cos + angles, g.sin + angles);
  to += (blockIdx.y * g.T * g.H + row) * g.D + column;
  store_16<uint32_t>(reinterpret_cast<uint32_t*>(to), low);
  store_16<uint32_t>(reinterpret_cast<uint32_t*>(to + g.D / 2), high);
}

/// Turns `planes` of the two planes beforehand, and makes them name the result.
template <class T>
void turn_beforehand(const AttentionGeometry& g, Plane& first, Plane& second, int planes, void* to,
                     cudaStream_t stream) {
  constexpr int kThreads = 256;
  const index_t vectors = g.T * g.H * (g.D / 2 / kPerVector);
  const dim3 grid(static_cast<unsigned>(ceil_div(vectors, kThreads)), planes);
  launch(turn_kernel<T>, grid, dim3(kThreads), 0, stream, g, first, second, static_cast<T*>(to));
  first = {to, g.H * g.D, g.D};
  if (planes == 2) second = {static_cast<T*>(to) + g.T * g.H * g.D, g.H * g.D, g.D};
}

}  // namespace modernbert_fast::cuda
