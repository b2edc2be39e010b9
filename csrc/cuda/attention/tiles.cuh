// Tiles of rows: how they lie in shared memory, how they get there, and how a warp multiplies with them.
//
// A row of a tile has kHead columns, and a head of D <= kHead columns fills it half by half: columns [0, D / 2) from 0
// and [D / 2, D) from kHead / 2, zeros after each. So the partner of a column under rotary is at the same distance for
// every D.
#pragma once

#include <instructions.cuh>

#include <type_traits>
#include "../warp.cuh"

#include "params.h"
#include "rotary.cuh"

namespace modernbert_fast::cuda {

template <class T>
__device__ __forceinline__ const T* of_head(const Plane& plane, index_t head) {
  return static_cast<const T*>(plane.data) + head * plane.stride_h;
}
template <class T>
__device__ __forceinline__ T* of_head(const MutablePlane& plane, index_t head) {
  return static_cast<T*>(plane.data) + head * plane.stride_h;
}

/// body(std::integral_constant<int, kHead>()), kHead columns being those that tiles have for heads of D.
template <class Body>
void with_head_of_tiles(int D, const Body& body) {
  if (D <= 32) return body(std::integral_constant<int, 32>());
  if (D <= 64) return body(std::integral_constant<int, 64>());
  body(std::integral_constant<int, 128>());
}

/// Zeros in the row t of one head.
template <class T>
__device__ __forceinline__ void clear_row(T* plane, index_t stride, index_t t, int D) {
  const uint32_t zeros[4] = {};
#pragma unroll 1
  for (int d = 0; d < D; d += kPerVector)
    store_16<uint32_t>(reinterpret_cast<uint32_t*>(plane + t * stride + d), zeros);
}

/// The first element of a vector (16 bytes) of a row. Eight rows at one vector lie in eight different groups of banks,
/// and so do eight vectors of a row.
template <int kHead>
__device__ __forceinline__ int place(int row, int vector) {
  constexpr int kVectors = kHead / kPerVector, kGroups = 8;
  constexpr int kShared = kVectors < kGroups ? kGroups / kVectors : 1;  // rows that share all the banks
  return (row * kVectors + (vector ^ (row / kShared % (kVectors < kGroups ? kVectors : kGroups)))) * kPerVector;
}

/// Rows of a plane on their way to a tile: the registers of one thread of kThreads. It takes vectors in pairs that
/// rotary turns together.
template <class T, int kHead, int kRows, int kThreads>
class StagedRows {
  static constexpr int kPairs = kHead / 2 / kPerVector;  // of a row
  static constexpr int kTotal = kRows * kPairs;
  static constexpr int kEach = (kTotal + kThreads - 1) / kThreads;

 public:
  /// Calls visit(i, row, pair) for each pair of this thread.
  template <class Visit>
  __device__ static __forceinline__ void for_each(const Visit& visit) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int index = threadIdx.x + i * kThreads;
      if (kTotal % kThreads == 0 || index < kTotal) visit(i, index / kPairs, index % kPairs);
    }
  }

  /// Rows from `first` of a plane of one head; zero from `end` on, and beyond D columns.
  __device__ __forceinline__ void load(const T* plane, index_t stride, int first, int end, int D) {
    for_each([&](int i, int row, int pair) {
      const T* from = plane + (first + row) * stride + pair * kPerVector;
      const bool there = first + row < end && pair * kPerVector < D / 2;
      fetch(low_[i], from, there);
      fetch(high_[i], from + D / 2, there);
    });
  }

  /// What lies in the tile already.
  __device__ __forceinline__ void load(const T* tile) {
    for_each([&](int i, int row, int pair) {
      fetch(low_[i], tile + place<kHead>(row, pair), true);
      fetch(high_[i], tile + place<kHead>(row, pair + kPairs), true);
    });
  }

  __device__ __forceinline__ void turn(const AttentionGeometry& g, int first, int end) {
    for_each([&](int i, int row, int pair) {
      if (first + row >= end || pair * kPerVector >= g.D / 2) return;
      const index_t angles = angles_of(g, first + row) + pair * kPerVector;
      cuda::turn<T>(low_[i], high_[i], g.cos + angles, g.sin + angles);
    });
  }

  __device__ __forceinline__ void negate() {
    for_each([&](int i, int, int) {
#pragma unroll
      for (int word = 0; word < 4; ++word) low_[i][word] ^= 0x80008000u, high_[i][word] ^= 0x80008000u;
    });
  }

  __device__ __forceinline__ void store(T* tile) const {
    for_each([&](int i, int row, int pair) {
      store_16<uint32_t>(words(tile + place<kHead>(row, pair)), low_[i]);
      store_16<uint32_t>(words(tile + place<kHead>(row, pair + kPairs)), high_[i]);
    });
  }

  /// Calls put(row, x . y) for each row, in one of the threads that have a part of it.
  template <class Put>
  __device__ __forceinline__ void dot(const StagedRows& other, const Put& put) const {
    static_assert(kTotal % kThreads == 0, "all lanes of a warp exchange their sums");
    for_each([&](int i, int row, int pair) {
      float sum = 0;
#pragma unroll
      for (int word = 0; word < 4; ++word)
        sum += dot(low_[i][word], other.low_[i][word]) + dot(high_[i][word], other.high_[i][word]);
#pragma unroll
      for (int mask = kPairs / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
      if (pair == 0) put(row, sum);
    });
  }

 private:
  __device__ static __forceinline__ uint32_t* words(T* x) { return reinterpret_cast<uint32_t*>(x); }
  __device__ static __forceinline__ void fetch(uint32_t (&to)[4], const T* from, bool there) {
    to[0] = to[1] = to[2] = to[3] = 0;
    if (there) load_16<uint32_t>(to, reinterpret_cast<const uint32_t*>(from));
  }
  __device__ static __forceinline__ float dot(uint32_t x, uint32_t y) {
    const float2 a = unpack_2<T>(x), b = unpack_2<T>(y);
    return a.x * b.x + a.y * b.y;
  }
  uint32_t low_[kEach][4], high_[kEach][4];
};

/// Two planes of one head, and the end of the text, whose rows a block meets together. x is q or k.
template <class T>
struct RowPair {
  const T* x;
  index_t stride_x;
  const T* y;
  index_t stride_y;
  int end;
  bool turns;  // whether x is turned on the way
};

/// Rows of a tile to rows from `first` of a plane of one head, as far as `end` and D columns.
template <class T, int kHead, int kRows, int kThreads>
__device__ __forceinline__ void store_rows(const T* tile, T* plane, index_t stride, int first, int end, int D) {
  constexpr int kVectors = kHead / kPerVector;
  for (int index = threadIdx.x; index < kRows * kVectors; index += kThreads) {
    const int row = index / kVectors, vector = index % kVectors, column = vector * kPerVector;
    const bool second = vector >= kVectors / 2;
    if (first + row >= end || column - (second ? kHead / 2 : 0) >= D / 2) continue;
    uint32_t words[4];
    load_16<uint32_t>(words, reinterpret_cast<const uint32_t*>(tile + place<kHead>(row, vector)));
    T* to = plane + (first + row) * stride + column - (second ? (kHead - D) / 2 : 0);
    store_16<uint32_t>(reinterpret_cast<uint32_t*>(to), words);
  }
}

/// kBands x 16 rows of a warp, kColumns columns, as mma.m16n8 lays sums out: lane (g, t) has of band b, [b][n], rows g
/// (elements 0 and 1) and g + 8 (2 and 3), at columns 8 n + 2 t and the next.
template <int kBands, int kColumns>
struct Sums {
  float at[kBands][kColumns / 8][4];

  __device__ __forceinline__ void clear() {
    for_each([](float& x, int, int, int) { x = 0; });
  }

  /// Calls visit(element, band, n, i).
  template <class Visit>
  __device__ __forceinline__ void for_each(const Visit& visit) {
#pragma unroll
    for (int band = 0; band < kBands; ++band)
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) visit(at[band][n][i], band, n, i);
  }

  /// The rounded sums of 16 columns from 16 n, as the left side of a product.
  template <class T>
  __device__ __forceinline__ void rounded(uint32_t (&to)[4], int band, int n) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float (&from)[4] = at[band][2 * n + half];
      to[2 * half] = pack_2<T>(from[0], from[1]);
      to[2 * half + 1] = pack_2<T>(from[2], from[3]);
    }
  }
};

__device__ __forceinline__ int fragment_row() { return lane_of_thread() / 4; }
__device__ __forceinline__ int fragment_column() { return lane_of_thread() % 4 * 2; }

/// The sum over the four threads that share a row.
__device__ __forceinline__ float row_sum(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}

/// Turns the sums of a row of q or k back by its angle.
template <int kHead, int kBands>
__device__ __forceinline__ void turn_back(Sums<kBands, kHead>& sums, const AttentionGeometry& g, int first, int end) {
#pragma unroll
  for (int band = 0; band < kBands; ++band)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = first + 16 * band + 8 * half + fragment_row();
      if (t >= end) continue;
      const index_t angles = angles_of(g, t) + fragment_column();
#pragma unroll
      for (int n = 0; n < kHead / 16; ++n) {
        if (8 * n >= g.D / 2) continue;
        const float2 cos = *reinterpret_cast<const float2*>(g.cos + angles + 8 * n);
        const float2 sin = *reinterpret_cast<const float2*>(g.sin + angles + 8 * n);
        const auto turn = [](float& low, float& high, float cos, float sin) {
          const float turned = low * cos + high * sin;
          high = high * cos - low * sin;
          low = turned;
        };
        float (&low)[4] = sums.at[band][n], (&high)[4] = sums.at[band][n + kHead / 16];
        turn(low[2 * half], high[2 * half], cos.x, sin.x);
        turn(low[2 * half + 1], high[2 * half + 1], cos.y, sin.y);
      }
    }
}

/// The left side of a product, kBands x 16 rows of a tile from `row`: kept in registers, or read each time.
template <class T, int kHead, int kBands, bool kKept>
class LeftSide {
 public:
  static constexpr bool kInRegisters = kKept;

  __device__ __forceinline__ LeftSide(const T* tile, int row) : tile_(tile), row_(row) {
    if constexpr (kKept)
#pragma unroll
      for (int band = 0; band < kBands; ++band)
#pragma unroll
        for (int k = 0; k < kHead / 16; ++k) read(kept_[band][k], band, k);
  }
  __device__ __forceinline__ void get(uint32_t (&to)[4], int band, int k) const {
    if constexpr (kKept) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = kept_[band][k][i];
    } else {
      read(to, band, k);
    }
  }

 private:
  __device__ __forceinline__ void read(uint32_t (&to)[4], int band, int k) const {
    const int lane = lane_of_thread();
    ldmatrix_x4(to, tile_ + place<kHead>(row_ + 16 * band + lane % 16, 2 * k + lane / 16));
  }
  const T* tile_;
  int row_;
  uint32_t kept_[kKept ? kBands : 1][kKept ? kHead / 16 : 1][4];
};

/// sums = a b^T, b being kN rows of a tile.
template <class Chip, class T, int kHead, int kBands, int kN, class Left>
__device__ __forceinline__ void multiply_by_rows(Sums<kBands, kN>& sums, const Left& a, const T* b) {
  sums.clear();
  const int lane = lane_of_thread();
// Where the left side is in shared memory, the addresses of more steps would take the registers that it left.
#pragma unroll(Left::kInRegisters ? kHead / 16 : 2)
  for (int k = 0; k < kHead / 16; ++k) {
    uint32_t left[kBands][4];
#pragma unroll
    for (int band = 0; band < kBands; ++band) a.get(left[band], band, k);
#pragma unroll
    for (int n = 0; n < kN / 16; ++n) {
      uint32_t right[4];
      ldmatrix_x4(right, b + place<kHead>(16 * n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
#pragma unroll
      for (int band = 0; band < kBands; ++band) {
        Chip::template multiply<T>(sums.at[band][2 * n], left[band], right[0], right[1]);
        Chip::template multiply<T>(sums.at[band][2 * n + 1], left[band], right[2], right[3]);
      }
    }
  }
}

/// sums += a b, a being rounded, and b kN rows of a tile.
template <class Chip, class T, int kHead, int kBands, int kN>
__device__ __forceinline__ void add_product(Sums<kBands, kHead>& sums, const Sums<kBands, kN>& a, const T* b) {
  const int lane = lane_of_thread();
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) {
    uint32_t left[kBands][4];
#pragma unroll
    for (int band = 0; band < kBands; ++band) a.template rounded<T>(left[band], band, k);
#pragma unroll
    for (int n = 0; n < kHead / 16; ++n) {
      uint32_t right[4];
      ldmatrix_x4_trans(right, b + place<kHead>(16 * k + lane % 16, 2 * n + lane / 16));
#pragma unroll
      for (int band = 0; band < kBands; ++band) {
        Chip::template multiply<T>(sums.at[band][2 * n], left[band], right[0], right[1]);
        Chip::template multiply<T>(sums.at[band][2 * n + 1], left[band], right[2], right[3]);
      }
    }
  }
}

/// Rounds the sums of a warp's rows into a tile, from `row`. No other warp has read these rows.
template <class T, int kHead, int kBands>
__device__ __forceinline__ void store_sums(const Sums<kBands, kHead>& sums, T* tile, int row) {
  sync_warp();
#pragma unroll
  for (int band = 0; band < kBands; ++band)
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        T* to = tile + place<kHead>(row + 16 * band + 8 * half + fragment_row(), n) + fragment_column();
        *reinterpret_cast<uint32_t*>(to) = pack_2<T>(sums.at[band][n][2 * half], sums.at[band][n][2 * half + 1]);
      }
}

}  // namespace modernbert_fast::cuda
