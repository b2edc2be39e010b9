// csrc/cuda/instructions.cuh for the host: the same functions, the same fragments, with every lane's arrival checked.
#pragma once

#include <cuda_runtime.h>

#include "../executor.h"

namespace modernbert_fast::cuda {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// ---- threads ----

constexpr int kWarp = 32;

inline int lane_of_thread() { return threadIdx.x % kWarp; }
inline int warp_of_thread() { return threadIdx.x / kWarp; }
inline char* shared_memory() { return simt::shared_memory(); }
inline void sync_block() { simt::barrier(0, 0); }
inline void sync_warp() { simt::warp_barrier(); }
inline void sync_threads(int barrier, int threads) { simt::barrier(barrier, threads); }

/// Threads change places only where they meet.
inline void atomic_max(int64_t* at, int64_t value) { *at = std::max(*at, value); }
inline void store_global_16(void* to, const uint32_t (&words)[4]) {
  *static_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// ---- values from other lanes ----

/// Each lane gives a value and names the lane whose value it takes.
template <class T>
inline T exchange(const char* purpose, T value, int from) {
  struct Own {
    T value;
    int from;
    T taken;
  } own = {value, from, value};
  simt::meet(purpose, &own, [](void* const* of_lanes) {
    for (int lane = 0; lane < kWarp; ++lane) {
      Own& own = *static_cast<Own*>(of_lanes[lane]);
      own.taken = static_cast<Own*>(of_lanes[own.from])->value;
    }
  });
  return own.taken;
}

template <class T>
inline T shuffle_xor(T value, int mask) {
  return exchange("shuffle_xor", value, (lane_of_thread() ^ mask) % kWarp);
}
inline bool all_of_warp(bool value) {
  int all = value;
  for (int mask = 1; mask < kWarp; mask *= 2) all &= shuffle_xor(all, mask);
  return all;
}
template <class T>
inline T shuffle_up(T value, int distance) {
  return exchange("shuffle_up", value, lane_of_thread() < distance ? lane_of_thread() : lane_of_thread() - distance);
}

// ---- numbers ----

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0 : y;
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u) return bits_as<float>(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  return bits_as<float>(sign | bits_as<uint32_t>(bits_as<float>(rest << 13) * 0x1p112f));
}

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Half from_float<Half>(float x) {
  const uint32_t bits = bits_as<uint32_t>(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (rest >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65,520 and beyond round to infinity
  if (rest < 0x38800000u)                                                   // subnormal: the addition rounds at 2^-24
    return {static_cast<uint16_t>(sign | (bits_as<uint32_t>(bits_as<float>(rest) + 0.5f) - 0x3f000000u))};
  return {static_cast<uint16_t>(sign | (((rest + 0xfffu + (rest >> 13 & 1)) >> 13) - 0x1c000u))};
}

template <class T>
inline uint32_t pack_2(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}
template <class T>
inline float2 unpack_2(uint32_t bits) {
  return {to_float(T{static_cast<uint16_t>(bits)}), to_float(T{static_cast<uint16_t>(bits >> 16)})};
}

// ---- tensor cores ----

/// d (16, 8) += a (16, kDepth) b (kDepth, 8); register i of a holds rows 8 (i % 2).., columns 8 (i / 2)..
template <class T, int kDepth>
inline void multiply(const char* purpose, float (&d)[4], const uint32_t* a, const uint32_t* b) {
  struct Own {
    float* d;
    const uint32_t *a, *b;
  } own = {d, a, b};
  simt::meet(purpose, &own, [](void* const* of_lanes) {
    const auto of = [&](int row, int pair) { return static_cast<const Own*>(of_lanes[row % 8 * 4 + pair % 4]); };
    float A[16][kDepth], B[kDepth][8];
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < kDepth; k += 2) {
        const float2 pair = unpack_2<T>(of(row, k / 2)->a[k / 8 * 2 + row / 8]);
        A[row][k] = pair.x, A[row][k + 1] = pair.y;
      }
    for (int column = 0; column < 8; ++column)
      for (int k = 0; k < kDepth; k += 2) {
        const float2 pair = unpack_2<T>(of(column, k / 2)->b[k / 8]);
        B[k][column] = pair.x, B[k + 1][column] = pair.y;
      }
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column) {
        float sum = 0;
        for (int k = 0; k < kDepth; ++k) sum += A[row][k] * B[k][column];
        of(row, column / 2)->d[row / 8 * 2 + column % 2] += sum;
      }
  });
}

inline void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  multiply<Half, 8>("mma_m16n8k8", d, a, &b);
}
template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply<T, 16>("mma_m16n8k16", d, a, b);
}

template <bool kTransposed>
inline void load_matrices(const char* purpose, uint32_t* to, const void* row) {
  struct Own {
    uint32_t* to;
    const void* row;
  } own = {to, row};
  simt::check_shared(row, 16, purpose);
  simt::note_access(row, 16, false);
  simt::meet(purpose, &own, [](void* const* of_lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto at = [&](int row, int column) {
        return static_cast<uint32_t>(
            static_cast<const uint16_t*>(static_cast<const Own*>(of_lanes[8 * matrix + row])->row)[column]);
      };
      for (int lane = 0; lane < kWarp; ++lane) {
        const int r = lane / 4, c = lane % 4 * 2;
        static_cast<const Own*>(of_lanes[lane])->to[matrix] =
            kTransposed ? at(c, r) | at(c + 1, r) << 16 : at(r, c) | at(r, c + 1) << 16;
      }
    }
  });
}

inline void ldmatrix_x4(uint32_t (&to)[4], const void* row) { load_matrices<false>("ldmatrix_x4", to, row); }
inline void ldmatrix_x4_trans(uint32_t (&to)[4], const void* row) { load_matrices<true>("ldmatrix_x4_trans", to, row); }

// ---- asynchronous copies ----

inline void cp_async_16(void* to, const void* from, int valid = 16) { simt::copy_later(to, from, valid); }
inline void cp_async_commit() { simt::commit_copies(); }
template <int kPending>
inline void cp_async_wait() {
  simt::wait_for_copies(kPending);
}

}  // namespace modernbert_fast::cuda
