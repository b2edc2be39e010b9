// What forward and backward share on sm_90a: tiles that are copied ahead, two warpgroups that multiply them, and rows
// of 64 columns in registers. Each warpgroup has 64 of the 128 rows of its block.
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
constexpr int kAllConsumers = 1;  // a barrier of theirs

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

// ---- rows in registers: a thread has parts of two rows, of `first + fragment_row()` and 8 below ----

using Factors = uint32_t[kHopperHead / 16][4];
using RowSums = Sums<1, kHopperHead>;

/// The first of the 16 rows of this warp.
__device__ __forceinline__ int first_row_of_warp(const OwnRows& rows) { return rows.first + warp_of_thread() * 16; }

/// The part of a factor that holds columns 8 i + fragment_column().. of a row, or of that below.
__device__ __forceinline__ uint32_t& part(Factors& a, int i, int below) { return a[i / 2][i % 2 * 2 + below]; }

/// Zero from the end of the text on.
template <class T>
__device__ __forceinline__ void load_own_rows(Factors& a, const Plane& plane, int first, int end, int head) {
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    const int t = first + 8 * below + fragment_row();
    const T* from = of_head<T>(plane, head) + t * plane.stride_t + fragment_column();
#pragma unroll
    for (int i = 0; i < kHopperHead / 8; ++i)
      part(a, i, below) = t < end ? *reinterpret_cast<const uint32_t*>(from + 8 * i) : 0;
  }
}

template <class T>
__device__ __forceinline__ void turn_own_rows(Factors& a, const AttentionGeometry& g, int first, int end) {
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    const int t = first + 8 * below + fragment_row();
    if (t >= end) continue;
    const index_t angles = angles_of(g, t) + fragment_column();
#pragma unroll
    for (int i = 0; i < kHopperHead / 16; ++i) {
      const float2 cos = *reinterpret_cast<const float2*>(g.cos + angles + 8 * i);
      const float2 sin = *reinterpret_cast<const float2*>(g.sin + angles + 8 * i);
      uint32_t &low = part(a, i, below), &high = part(a, i + kHopperHead / 16, below);
      const float2 x = unpack_2<T>(low), y = unpack_2<T>(high);
      low = pack_2<T>(x.x * cos.x - y.x * sin.x, x.y * cos.y - y.y * sin.y);
      high = pack_2<T>(y.x * cos.x + x.x * sin.x, y.y * cos.y + x.y * sin.y);
    }
  }
}

/// The rows of the text.
template <class T>
__device__ __forceinline__ void store_own_rows(const RowSums& sums, const MutablePlane& plane, int first, int end,
                                               int head) {
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    const int t = first + 8 * below + fragment_row();
    if (t >= end) continue;
    T* to = of_head<T>(plane, head) + t * plane.stride_t + fragment_column();
#pragma unroll
    for (int i = 0; i < kHopperHead / 8; ++i)
      *reinterpret_cast<uint32_t*>(to + 8 * i) = pack_2<T>(sums.at[0][i][2 * below], sums.at[0][i][2 * below + 1]);
  }
}

/// Sums as factors of the next product.
template <class T, int kSixteens>
__device__ __forceinline__ void round_to(uint32_t (&a)[kSixteens][4], const Sums<1, 16 * kSixteens>& sums) {
#pragma unroll
  for (int i = 0; i < kSixteens; ++i) sums.template rounded<T>(a[i], 0, i);
}

/// sums (64, rows of the tile) = a (64, 64) tile^T, as a group of its own.
template <class T, int kRows>
__device__ __forceinline__ void begin_product_by_rows(Sums<1, kRows>& sums, const Factors& a, const char* tile) {
  const uint64_t factor = factor_in_tile(tile);
#pragma unroll
  for (int i = 0; i < kHopperHead / 16; ++i) multiply_by_rows<T>(sums.at[0], a[i], factor + 2 * i, i > 0);
  products_commit();
}

/// sums (64, 64) += a (64, rows of the tile) tile, as a group of its own.
template <class T, int kSixteens>
__device__ __forceinline__ void begin_product_by_columns(RowSums& sums, const uint32_t (&a)[kSixteens][4],
                                                         const char* tile) {
  const uint64_t factor = factor_in_tile(tile);
#pragma unroll
  for (int i = 0; i < kSixteens; ++i) multiply_by_columns<T>(sums.at[0], a[i], factor + i * (16 * 128 / 16));
  products_commit();
}

template <class T>
TileMap tile_map(const AttentionGeometry& g, const Plane& plane, int box_rows) {
  return tile_map<T>(plane.data, g.T, g.H, plane.stride_t, plane.stride_h, box_rows);
}

}  // namespace modernbert_fast::cuda
