// What a warp can do beyond C++: shuffles, barriers, tensor cores, asynchronous copies, conversions.
//
// The host executor has a header of this name with the same functions (tests/simt/include), found first: include it as
// <instructions.cuh>. Kernels use these, threadIdx, blockIdx, blockDim, gridDim and plain C++, and nothing else.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace modernbert_fast::cuda {

using Half = __half;
using BFloat16 = __nv_bfloat16;

// ---- threads ----

constexpr int kWarp = 32;

__device__ __forceinline__ int lane_of_thread() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warp_of_thread() { return threadIdx.x / kWarp; }

/// The dynamic shared memory of the block. There is no other: __shared__ variables are not used.
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(1024) char memory[];
  return memory;
}

/// Every thread of the block arrives; what each wrote is seen by all.
__device__ __forceinline__ void sync_block() { __syncthreads(); }

/// The same within the warp.
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

/// The same for `threads` threads of the block (whole warps), that agree on a barrier of 1 to 15.
__device__ __forceinline__ void sync_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/// *at = max(*at, value), whichever threads do so at once: the result does not depend on their order.
__device__ __forceinline__ void atomic_max(int64_t* at, int64_t value) {
  atomicMax(reinterpret_cast<long long*>(at), static_cast<long long>(value));
}

/// 16 bytes to an address of global memory that is aligned to as many, by one instruction. What C++ says of it the
/// compiler may take apart into four.
__device__ __forceinline__ void store_global_16(void* to, const uint32_t (&words)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
               "r"(words[3])
               : "memory");
}

// ---- values from other lanes: all 32 take part ----

/// The value of the lane whose number differs by the bits of mask. 4 bytes.
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

/// Whether it holds for every lane.
__device__ __forceinline__ bool all_of_warp(bool value) { return __all_sync(0xffffffffu, value); }

/// The value of the lane `distance` below; the first lanes keep their own.
template <class T>
__device__ __forceinline__ T shuffle_up(T value, int distance) {
  return __shfl_up_sync(0xffffffffu, value, distance);
}

// ---- tensor cores: one warp, fragments as PTX lays them out (g = lane / 4, t = lane % 4) ----

/// d (16, 8) += a (16, 8) b (8, 8), fp16 in, fp32 sums. sm_75.
/// a[0] = (g, 2t..2t+1), a[1] = (g + 8, 2t..); b = (2t..2t+1, g); d = (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t +
/// 1).
__device__ __forceinline__ void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(b));
}

/// d (16, 8) += a (16, 16) b (16, 8), T in, fp32 sums. sm_80.
/// a[0] = (g, 2t..), a[1] = (g + 8, 2t..), a[2] = (g, 2t + 8..), a[3] = (g + 8, 2t + 8..);
/// b[0] = (2t.., g), b[1] = (2t + 8.., g); d as above.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_m16n8k16<Half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<BFloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// An address in shared memory as instructions take it.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Matrices (8, 8) of 2-byte elements from shared memory. Lane 8 i + r names row r of matrix i, 16 bytes aligned to 16;
/// lane l then holds elements (l / 4, 2 (l % 4)..) of matrix i in to[i]. _trans: of its transpose.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// ---- asynchronous copies: sm_80 ----

/// 16 bytes from global to shared memory, both aligned to 16: the first `valid` (0 to 16) are read, the rest is zero.
/// They are there for this thread after cp_async_wait, for others after a barrier that follows it.
__device__ __forceinline__ void cp_async_16(void* to, const void* from, int valid = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(valid)
               : "memory");
}
/// Closes a group of the copies that this thread has asked for since the last one.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Returns when all but the last kPending groups are there.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- numbers ----

/// 2^x to two units in the last place; subnormal results are zero, 2^-inf is 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(Half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(BFloat16 x) { return __bfloat162float(x); }

/// Rounded to nearest, ties to even.
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ Half from_float<Half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float x) {
  return __float2bfloat16_rn(x);
}

/// Two elements of 2 bytes in a register, `low` in the lower half: what fragments are made of.
template <class T>
__device__ __forceinline__ uint32_t pack_2(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack_2<Half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}
template <>
__device__ __forceinline__ uint32_t pack_2<BFloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

/// The inverse: x is the low element, y the high one.
template <class T>
__device__ __forceinline__ float2 unpack_2(uint32_t bits) {
  T pair[2];
  memcpy(pair, &bits, sizeof(bits));
  return make_float2(to_float(pair[0]), to_float(pair[1]));
}

}  // namespace modernbert_fast::cuda
