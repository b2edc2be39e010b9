// Ampere and later: fp16 and bf16, products of sixteen columns at a time, asynchronous copies into two stages of shared
// memory, 99 KiB at most (sm_86).
#pragma once

#include <instructions.cuh>

#include "tiles.cuh"

namespace modernbert_fast::cuda {

struct Sm80 {
  static constexpr int kMostShared = 99 << 10;

  template <class T>
  __device__ static __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const uint32_t right[2] = {b0, b1};
    mma_m16n8k16<T>(d, a, right);
  }

  /// Brings kRows rows of two planes at a time: they are copied while the block works on those before.
  template <class T, int kHead, int kRows, int kThreads>
  class Stream {
    using Staged = StagedRows<T, kHead, kRows, kThreads>;
    static constexpr int kTile = kRows * kHead;

   public:
    static constexpr int kElements = 4 * kTile;

    __device__ __forceinline__ Stream(T* memory, const RowPair<T>& rows, const AttentionGeometry& g)
        : rows_(rows), geometry_(g), memory_(memory), stage_(0) {}
    __device__ __forceinline__ void fetch(int first) {
      first_ = first;
      T* to = memory_ + (stage_ ^ 1) * 2 * kTile;
      copy(to, rows_.x, rows_.stride_x);
      copy(to + kTile, rows_.y, rows_.stride_y);
      cp_async_commit();
    }
    /// Returns when x() and y() hold what was fetched last. Nobody reads the rows before any more.
    __device__ __forceinline__ void settle() {
      stage_ ^= 1;
      cp_async_wait<0>();
      if (rows_.turns) {  // each thread turns what it has copied itself
        T* tile = memory_ + stage_ * 2 * kTile;
        Staged staged;
        staged.load(tile);
        staged.turn(geometry_, first_, rows_.end);
        staged.store(tile);
      }
      sync_block();
    }
    __device__ __forceinline__ const T* x() const { return memory_ + stage_ * 2 * kTile; }
    __device__ __forceinline__ const T* y() const { return x() + kTile; }

   private:
    __device__ __forceinline__ void copy(T* tile, const T* plane, index_t stride) const {
      const int half = geometry_.D / 2;
      Staged::for_each([&](int, int row, int pair) {
        const bool there = first_ + row < rows_.end && pair * kPerVector < half;
        const T* from = plane + (there ? (first_ + row) * stride + pair * kPerVector : 0);
        cp_async_16(tile + place<kHead>(row, pair), from, there ? 16 : 0);
        cp_async_16(tile + place<kHead>(row, pair + kHead / 2 / kPerVector), from + half, there ? 16 : 0);
      });
    }
    const RowPair<T>& rows_;
    const AttentionGeometry& geometry_;
    T* memory_;
    int stage_, first_;
  };

  /// Queries, keys that are brought, keys that are met at once, and warps of a block.
  template <int kHead, bool kWindowed>
  struct Forward {
    static constexpr int kM = kWindowed || kHead > 64 ? 64 : 128, kN = kHead > 64 ? 32 : 64;
    static constexpr int kStep = kWindowed ? 32 : kN, kWarps = 4;
  };
  /// Own rows, others and warps of a block.
  template <int kHead>
  struct Backward {
    static constexpr int kM = 64, kN = kHead > 64 ? 16 : 32, kWarps = 4;
  };
};

}  // namespace modernbert_fast::cuda
