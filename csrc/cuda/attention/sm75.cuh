// Turing: fp16, products of eight columns at a time, rows that pass through registers, 64 KiB of shared memory.
#pragma once

#include <instructions.cuh>

#include "tiles.cuh"

namespace modernbert_fast::cuda {

struct Sm75 {
  static constexpr int kMostShared = 64 << 10;

  template <class T>
  __device__ static __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const uint32_t left[2] = {a[0], a[1]}, right[2] = {a[2], a[3]};
    mma_m16n8k8(d, left, b0);
    mma_m16n8k8(d, right, b1);
  }

  /// Brings kRows rows of two planes at a time: they are in registers while the block works on those before.
  template <class T, int kHead, int kRows, int kThreads>
  class Stream {
   public:
    static constexpr int kElements = 2 * kRows * kHead;

    __device__ __forceinline__ Stream(T* memory, const RowPair<T>& rows, const AttentionGeometry& g)
        : rows_(rows), geometry_(g), memory_(memory) {}
    __device__ __forceinline__ void fetch(int first) {
      first_ = first;
      x_.load(rows_.x, rows_.stride_x, first, rows_.end, geometry_.D);
      y_.load(rows_.y, rows_.stride_y, first, rows_.end, geometry_.D);
    }
    /// Returns when x() and y() hold what was fetched last.
    __device__ __forceinline__ void settle() {
      if (rows_.turns) x_.turn(geometry_, first_, rows_.end);
      sync_block();  // nobody reads the rows before any more
      x_.store(memory_);
      y_.store(memory_ + kRows * kHead);
      sync_block();
    }
    __device__ __forceinline__ const T* x() const { return memory_; }
    __device__ __forceinline__ const T* y() const { return memory_ + kRows * kHead; }

   private:
    const RowPair<T>& rows_;
    const AttentionGeometry& geometry_;
    T* memory_;
    int first_;
    StagedRows<T, kHead, kRows, kThreads> x_, y_;
  };

  /// Queries, keys that are brought, keys that are met at once, and warps of a block.
  template <int kHead, bool kWindowed>
  struct Forward {
    static constexpr int kM = kWindowed || kHead > 64 ? 64 : 128, kN = kWindowed && kHead <= 64 ? 64 : 32, kStep = 32;
    static constexpr int kWarps = 4;
  };
  /// Own rows, others and warps of a block.
  template <int kHead>
  struct Backward {
    static constexpr int kM = 64, kN = kHead > 64 ? 16 : 32, kWarps = 4;
  };
};

}  // namespace modernbert_fast::cuda
