// What forward and backward share on sm_90a: a warp that has tiles copied ahead, two warpgroups that multiply them, and
// rows of 64 columns in registers. Each warpgroup has 64 of the 128 rows of its block.
#pragma once

#include <hopper.cuh>
#include <warp.cuh>

#include "params.h"
#include "rotary.cuh"
#include "seqlen.cuh"
#include "softmax.cuh"
#include "tiles.cuh"

namespace modernbert_fast::cuda {

constexpr int kHopperRows = 128;
constexpr int kConsumers = kHopperRows / 64, kConsumerThreads = kConsumers * kWarpgroup;
constexpr int kHopperThreads = kConsumerThreads + kWarpgroup;
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

enum NamedBarrier { kAllConsumers = 1, kTurn };  // kTurn + a consumer's number

/// Tiles (kRows, 64) in flight, each in one of kStages places. Full barriers count what arrives, empty ones the warps
/// that are done.
template <int kRows, int kStages>
class TileRing {
 public:
  static constexpr int kTileBytes = kRows * kHopperHead * 2, kBytes = kStages * kTileBytes;
  static constexpr int kBarrierBytes = 2 * kStages * static_cast<int>(sizeof(Barrier));

  __device__ __forceinline__ TileRing(char* tiles, char* barriers)
      : tiles_(tiles), full_(reinterpret_cast<Barrier*>(barriers)), empty_(full_ + kStages) {}

  /// One thread, before the block's threads meet. `arrivals` announce a step's bytes or bring some of their own.
  __device__ __forceinline__ void init(int arrivals) const {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full_ + i, arrivals);
      barrier_init(empty_ + i, kConsumerThreads / kWarp);
    }
  }

  static __device__ __forceinline__ int stage(int step) { return step % kStages; }
  __device__ __forceinline__ char* tile(int step) const { return tiles_ + stage(step) * kTileBytes; }
  __device__ __forceinline__ Barrier* full(int step) const { return full_ + stage(step); }

  __device__ __forceinline__ void wait_empty(int step) const { barrier_wait(empty_ + stage(step), parity(step) ^ 1); }
  __device__ __forceinline__ void wait_full(int step) const { barrier_wait(full_ + stage(step), parity(step)); }
  /// This warp's products no longer read the step's tile.
  __device__ __forceinline__ void release(int step) const {
    if (lane_of_thread() == 0) barrier_arrive(empty_ + stage(step));
  }

 private:
  static __device__ __forceinline__ int parity(int step) { return step / kStages % 2; }

  char* tiles_;
  Barrier *full_, *empty_;
};

/// Tiles are taken from the last to the first, so that only the first step meets rows beyond the end of the text.
template <int kRows>
struct TileOrder {
  int start, tiles, seen;  // seen: rows of the first step that are the text's

  __device__ __forceinline__ explicit TileOrder(const OwnRows& rows)
      : start(rows.start),
        tiles((rows.end - rows.start + kRows - 1) / kRows),
        seen(rows.end - rows.start - (tiles - 1) * kRows) {}
  __device__ __forceinline__ int row(int step) const { return start + (tiles - 1 - step) * kRows; }
};

/// Rows from `first` on are of other texts: nothing times infinity is not a number, so they become zero. All consumers.
template <int kRows>
__device__ __forceinline__ void clear_tile_from(char* tile, int first) {
  for (int i = first * 8 + static_cast<int>(threadIdx.x); i < kRows * 8; i += kConsumerThreads)
    *reinterpret_cast<uint4*>(tile + place_in_tile(i / 8, i % 8)) = make_uint4(0, 0, 0, 0);
}
/// After that: products see it.
__device__ __forceinline__ void cleared() {
  fence_for_products();
  sync_threads(kAllConsumers, kConsumerThreads);
}

// ---- rows in registers: a thread has parts of rows `row` and row + 8, laid out as factors or as sums ----

using Factors = uint32_t[kHopperHead / 16][4];
using RowSums = float[kHopperHead / 8][4];

__device__ __forceinline__ int first_own_row(const OwnRows& rows) {
  return rows.first + warp_of_thread() * 16 + lane_of_thread() / 4;
}
__device__ __forceinline__ int first_own_column() { return 2 * (lane_of_thread() % 4); }

/// The part of a factor that holds columns 8 i + first_own_column().. of row + 8 below.
__device__ __forceinline__ uint32_t& part(Factors& a, int i, int below) { return a[i / 2][i % 2 * 2 + below]; }

/// Zero from the end of the text on.
template <class T>
__device__ __forceinline__ void load_own_rows(Factors& a, const Plane& plane, int row, int end, int head) {
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    const int t = row + 8 * below;
    const T* from = of_head<T>(plane, head) + t * plane.stride_t + first_own_column();
#pragma unroll
    for (int i = 0; i < kHopperHead / 8; ++i)
      part(a, i, below) = t < end ? *reinterpret_cast<const uint32_t*>(from + 8 * i) : 0;
  }
}

/// Calls turn(i, below, cos, sin) for the pairs of columns 8 i.. and 8 i + 32.. of the rows that exist.
template <class Turn>
__device__ __forceinline__ void for_angles(const AttentionGeometry& g, int row, int end, const Turn& turn) {
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    if (row + 8 * below >= end) continue;
    const index_t angles = angles_of(g, row + 8 * below) + first_own_column();
#pragma unroll
    for (int i = 0; i < kHopperHead / 16; ++i)
      turn(i, below, *reinterpret_cast<const float2*>(g.cos + angles + 8 * i),
           *reinterpret_cast<const float2*>(g.sin + angles + 8 * i));
  }
}

template <class T>
__device__ __forceinline__ void turn_rows(Factors& a, const AttentionGeometry& g, int row, int end) {
  for_angles(g, row, end, [&](int i, int below, float2 cos, float2 sin) {
    uint32_t &low = part(a, i, below), &high = part(a, i + kHopperHead / 16, below);
    const float2 x = unpack_2<T>(low), y = unpack_2<T>(high);
    low = pack_2<T>(x.x * cos.x - y.x * sin.x, x.y * cos.y - y.y * sin.y);
    high = pack_2<T>(y.x * cos.x + x.x * sin.x, y.y * cos.y + x.y * sin.y);
  });
}

/// By the angles, backwards.
__device__ __forceinline__ void turn_sums_back(RowSums& sums, const AttentionGeometry& g, int row, int end) {
  for_angles(g, row, end, [&](int i, int below, float2 cos, float2 sin) {
    float *low = sums[i] + 2 * below, *high = sums[i + kHopperHead / 16] + 2 * below;
    const float x[] = {low[0], low[1]}, y[] = {high[0], high[1]};
    low[0] = x[0] * cos.x + y[0] * sin.x, low[1] = x[1] * cos.y + y[1] * sin.y;
    high[0] = y[0] * cos.x - x[0] * sin.x, high[1] = y[1] * cos.y - x[1] * sin.y;
  });
}

/// The rows of the text, times a factor for each.
template <class T>
__device__ __forceinline__ void store_own_rows(const RowSums& sums, const float (&scale)[2], const MutablePlane& plane,
                                               int row, int end, int head) {
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    const int t = row + 8 * below;
    if (t >= end) continue;
    T* to = of_head<T>(plane, head) + t * plane.stride_t + first_own_column();
#pragma unroll
    for (int i = 0; i < kHopperHead / 8; ++i)
      *reinterpret_cast<uint32_t*>(to + 8 * i) =
          pack_2<T>(sums[i][2 * below] * scale[below], sums[i][2 * below + 1] * scale[below]);
  }
}

/// Sums as factors of the next product.
template <class T, int kEights>
__device__ __forceinline__ void round_to(uint32_t (&a)[kEights / 2][4], const float (&sums)[kEights][4]) {
#pragma unroll
  for (int i = 0; i < kEights; ++i) {
    a[i / 2][i % 2 * 2] = pack_2<T>(sums[i][0], sums[i][1]);
    a[i / 2][i % 2 * 2 + 1] = pack_2<T>(sums[i][2], sums[i][3]);
  }
}

/// The sum over the four threads that share rows.
__device__ __forceinline__ float row_sum(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}

/// sums (64, rows of the tile) = a (64, 64) tile^T, as a group of its own.
template <class T, int kEights>
__device__ __forceinline__ void begin_product_by_rows(float (&sums)[kEights][4], const Factors& a, const char* tile) {
  const uint64_t factor = factor_in_tile(tile);
#pragma unroll
  for (int i = 0; i < kHopperHead / 16; ++i) multiply_by_rows<T>(sums, a[i], factor + 2 * i, i > 0);
  products_commit();
}

/// sums (64, 64) += a (64, rows of the tile) tile, as a group of its own.
template <class T, int kSixteens>
__device__ __forceinline__ void begin_product_by_columns(RowSums& sums, const uint32_t (&a)[kSixteens][4],
                                                         const char* tile) {
  const uint64_t factor = factor_in_tile(tile);
#pragma unroll
  for (int i = 0; i < kSixteens; ++i) multiply_by_columns<T>(sums, a[i], factor + i * (16 * 128 / 16));
  products_commit();
}

template <class T>
TileMap tile_map(const AttentionGeometry& g, const Plane& plane, int box_rows) {
  return tile_map<T>(plane.data, g.T, g.H, plane.stride_t, plane.stride_h, box_rows);
}

}  // namespace modernbert_fast::cuda
