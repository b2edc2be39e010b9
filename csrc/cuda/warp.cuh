// Small things that most kernels need, in plain C++ above <instructions.cuh>.
#pragma once

#include <instructions.cuh>

namespace modernbert_fast::cuda {

/// The sum over the lanes, the same in each of them.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

template <class T>
constexpr int kPerPack = 16 / sizeof(T);

/// The elements at an address aligned to 16 bytes, by one instruction.
template <class T>
__device__ __forceinline__ void load_16(T (&to)[kPerPack<T>], const T* from) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  memcpy(to, &bits, sizeof(bits));
}

template <class T>
__device__ __forceinline__ void store_16(T* to, const T (&from)[kPerPack<T>]) {
  uint4 bits;
  memcpy(&bits, from, sizeof(bits));
  *reinterpret_cast<uint4*>(to) = bits;
}

/// kCount elements: 16 bytes at a time where they are that many, else one by one.
template <class T, int kCount>
__device__ __forceinline__ void load(T (&to)[kCount], const T* from) {
  if constexpr (kCount % kPerPack<T> == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += kPerPack<T>) load_16(reinterpret_cast<T(&)[kPerPack<T>]>(to[i]), from + i);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = from[i];
  }
}

/// The same the other way, to global memory.
template <class T, int kCount>
__device__ __forceinline__ void store(T* to, const T (&from)[kCount]) {
  if constexpr (kCount % kPerPack<T> == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += kPerPack<T>) {
      uint32_t words[4];
      memcpy(words, from + i, sizeof(words));
      store_global_16(to + i, words);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = from[i];
  }
}

/// Whether every row that starts a multiple of `stride` elements after `first` can be read that way.
template <class T>
bool rows_of_16(const T* first, int64_t stride) {
  return reinterpret_cast<uintptr_t>(first) % 16 == 0 && stride % kPerPack<T> == 0;
}

}  // namespace modernbert_fast::cuda
