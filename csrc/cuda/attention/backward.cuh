// Attention, backward. Reference: modernbert_fast/reference/attention.py.
//
// Two passes, so that no sum has an order that varies: one for dq, which also stores gradient . o for each row, and one
// for dk and dv. Both are one kernel: a block keeps its own rows of one side, meets those of the other side that they
// may see, and computes the probabilities again from the lse.
//
//   own (dq)   q, gradient     meets k, v            dq += ds k
//   own (dkv)  k, v            meets q, gradient     dk += ds q, dv += p gradient
//
// with p = exp(own . met - lse) and ds = p (own . met of the second planes - delta). Reads 5HD and writes 3HD elements
// a token; 14 x keys x HD flops.
#pragma once

#include <instructions.cuh>
#include "../launch.cuh"

#include "mask.cuh"
#include "params.h"
#include "rotary.cuh"
#include "seqlen.cuh"
#include "softmax.cuh"
#include "tiles.cuh"

namespace modernbert_fast::cuda {

/// lse, as an exponent of two, and delta of kRows rows that are met: in registers, then in one of two stages of shared
/// memory, as a Stream brings the rows themselves.
template <int kRows>
class RowStatistics {
 public:
  static constexpr int kFloats = 4 * kRows;

  __device__ __forceinline__ RowStatistics(float* memory, const float* lse, const float* delta, int end)
      : memory_(memory), lse_(lse), delta_(delta), end_(end), stage_(0) {}
  __device__ __forceinline__ void fetch(int first) {
    const int t = first + threadIdx.x;
    const bool there = threadIdx.x < kRows && t < end_;
    fetched_lse_ = there ? lse_[t] * kLog2E : 0;
    fetched_delta_ = there ? delta_[t] : 0;
  }
  /// Before the barrier of the Stream.
  __device__ __forceinline__ void settle() {
    stage_ ^= 1;
    if (threadIdx.x >= kRows) return;
    float* const to = memory_ + stage_ * 2 * kRows + threadIdx.x;
    to[0] = fetched_lse_;
    to[kRows] = fetched_delta_;
  }
  __device__ __forceinline__ float lse(int row) const { return memory_[stage_ * 2 * kRows + row]; }
  __device__ __forceinline__ float delta(int row) const { return memory_[(stage_ * 2 + 1) * kRows + row]; }

 private:
  float* memory_;
  const float *lse_, *delta_;
  int end_, stage_;
  float fetched_lse_, fetched_delta_;
};

template <class Chip, class T, int kHead, bool kOfKeys>
struct BackwardBlock : Chip::template Backward<kHead> {
  using Shape = typename Chip::template Backward<kHead>;
  static constexpr int kThreads = Shape::kWarps * kWarp, kBands = Shape::kM / Shape::kWarps / 16;
  static constexpr bool kKept = kHead <= 64;  // wider heads leave no registers for their own rows
  using Met = typename Chip::template Stream<T, kHead, Shape::kN, kThreads>;
  using Statistics = RowStatistics<Shape::kN>;
  static constexpr int kElements = 2 * Shape::kM * kHead + Met::kElements;
  static constexpr int kBytes = kElements * sizeof(T) + (kOfKeys ? Statistics::kFloats : Shape::kM) * sizeof(float);
  static constexpr int kResident = 1;  // as in forward.cuh
  static_assert(kBytes <= Chip::kMostShared, "more shared memory than the chip has");
};

template <class Chip, class T, int kHead, bool kOfKeys>
__global__ void __launch_bounds__(BackwardBlock<Chip, T, kHead, kOfKeys>::kThreads,
                                  BackwardBlock<Chip, T, kHead, kOfKeys>::kResident)
    backward_kernel(const AttentionBackward args) {
  using Block = BackwardBlock<Chip, T, kHead, kOfKeys>;
  constexpr int kM = Block::kM, kN = Block::kN, kBands = Block::kBands;
  const AttentionGeometry& g = args.geometry;
  const index_t head = blockIdx.y;
  const MutablePlane& result = kOfKeys ? args.dk : args.dq;
  T* const result_plane = of_head<T>(result, head);
  T* const dv_plane = of_head<T>(args.dv, head);
  for_rows_of_no_text(g, [&](index_t t) {
    clear_row(result_plane, result.stride_t, t, g.D);
    if (kOfKeys) clear_row(dv_plane, args.dv.stride_t, t, g.D);
  });
  const OwnRows rows = own_rows<kM>(g, blockIdx.x);
  if (rows.first >= rows.end) return;
  int begin, end;
  reach<kM, kN>(rows, g.window, begin, end);

  T* const tile = reinterpret_cast<T*>(shared_memory());
  T* const second_tile = tile + kM * kHead;
  float* const floats = reinterpret_cast<float*>(tile + Block::kElements);
  const float* const lse = args.lse + head * g.T;
  float* const delta = args.delta + head * g.T;
  const Plane &own = kOfKeys ? args.k : args.q, &second = kOfKeys ? args.v : args.gradient;
  const Plane &x = kOfKeys ? args.q : args.k, &y = kOfKeys ? args.gradient : args.v;
  const bool turns = g.positions != nullptr && !turns_beforehand(g);
  const RowPair<T> pair = {of_head<T>(x, head), x.stride_t, of_head<T>(y, head), y.stride_t, rows.end, turns};
  typename Block::Met met(second_tile + kM * kHead, pair, g);
  typename Block::Statistics statistics(floats, lse, delta, rows.end);
  met.fetch(begin);
  if (kOfKeys) statistics.fetch(begin);
  {
    using Staged = StagedRows<T, kHead, kM, Block::kThreads>;
    Staged staged;
    staged.load(of_head<T>(own, head), own.stride_t, rows.first, rows.end, g.D);
    if (turns) staged.turn(g, rows.first, rows.end);
    staged.store(tile);
    staged.load(of_head<T>(second, head), second.stride_t, rows.first, rows.end, g.D);
    staged.store(second_tile);
    if constexpr (!kOfKeys) {
      Staged o;
      o.load(of_head<T>(args.o, head), args.o.stride_t, rows.first, rows.end, g.D);
      staged.dot(o, [&](int row, float sum) {
        floats[row] = sum;
        if (rows.first + row < rows.end) delta[rows.first + row] = sum;
      });
    }
  }
  sync_block();
  const int own_row = warp_of_thread() * 16 * kBands, first = rows.first + own_row;
  const LeftSide<T, kHead, kBands, Block::kKept> left(tile, own_row), second_left(second_tile, own_row);
  const Mask mask(g, rows.end);
  int places[kBands][2];
  float own_lse[kBands][2], own_delta[kBands][2];
#pragma unroll
  for (int band = 0; band < kBands; ++band)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * band + 8 * half + fragment_row(), t = first + row;
      places[band][half] = mask.place(t);
      own_lse[band][half] = !kOfKeys && t < rows.end ? lse[t] * kLog2E : 0;
      own_delta[band][half] = kOfKeys ? 0 : floats[own_row + row];
    }

  const float to_log2 = g.scale * kLog2E;
  Sums<kBands, kHead> sums, dv;
  sums.clear();
  dv.clear();
  for (int n0 = begin; n0 < end; n0 += kN) {
    if (kOfKeys) statistics.settle();
    met.settle();
    if (n0 + kN < end) {
      met.fetch(n0 + kN);
      if (kOfKeys) statistics.fetch(n0 + kN);
    }
    if (!mask.template reaches<16 * kBands, kN>(first, n0)) continue;
    Sums<kBands, kN> p, ds;
    multiply_by_rows<Chip, T, kHead>(p, left, met.x());
    const bool is_open = mask.template is_open<16 * kBands, kN>(first, n0);
#pragma unroll
    for (int column = 0; column < kN / 4; ++column) {
      const int row = column / 2 * 8 + column % 2 + fragment_column(), n = n0 + row;
      const int at_n = is_open ? n : mask.place(n);
      const float met_lse = kOfKeys ? statistics.lse(row) : 0;
#pragma unroll
      for (int band = 0; band < kBands; ++band)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& at = p.at[band][column / 2][2 * half + column % 2];
          const float weight = exp2_approx(fmaf(at, to_log2, kOfKeys ? -met_lse : -own_lse[band][half]));
          at = is_open || mask.sees(places[band][half], n, at_n) ? weight : 0;
        }
    }
    if constexpr (kOfKeys) add_product<Chip, T, kHead>(dv, p, met.y());
    multiply_by_rows<Chip, T, kHead>(ds, second_left, met.y());
#pragma unroll
    for (int column = 0; column < kN / 4; ++column) {
      const float met_delta = kOfKeys ? statistics.delta(column / 2 * 8 + column % 2 + fragment_column()) : 0;
#pragma unroll
      for (int band = 0; band < kBands; ++band)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int i = 2 * half + column % 2;
          float& at = ds.at[band][column / 2][i];
          at = p.at[band][column / 2][i] * (at - (kOfKeys ? met_delta : own_delta[band][half]));
        }
    }
    add_product<Chip, T, kHead>(sums, ds, met.x());
  }

  sums.for_each([&](float& sum, int, int, int) { sum *= g.scale; });
  if (g.positions != nullptr) turn_back<kHead>(sums, g, first, rows.end);
  store_sums<T, kHead>(sums, tile, own_row);
  if constexpr (kOfKeys) store_sums<T, kHead>(dv, second_tile, own_row);
  sync_block();
  store_rows<T, kHead, kM, Block::kThreads>(tile, result_plane, result.stride_t, rows.first, rows.end, g.D);
  if constexpr (kOfKeys)
    store_rows<T, kHead, kM, Block::kThreads>(second_tile, dv_plane, args.dv.stride_t, rows.first, rows.end, g.D);
}

template <class Chip, class T, int kHead>
void launch_backward(const AttentionBackward& args, cudaStream_t stream) {
  const auto start = [&](auto of_keys) {
    using Block = BackwardBlock<Chip, T, kHead, decltype(of_keys)::value>;
    launch(backward_kernel<Chip, T, kHead, decltype(of_keys)::value>, attention_grid(args.geometry),
           dim3(Block::kThreads), Block::kBytes, stream, args);
  };
  start(std::false_type{});  // the pass for dq, which leaves delta to the other
  start(std::true_type{});
}

template <class Chip, class T>
void attention_backward(AttentionBackward args, cudaStream_t stream) {
  const AttentionGeometry& g = args.geometry;
  if (turns_beforehand(g)) turn_beforehand<T>(g, args.q, args.k, 2, args.turned_qk, stream);
  with_head_of_tiles(g.D, [&](auto head) { launch_backward<Chip, T, decltype(head)::value>(args, stream); });
}

}  // namespace modernbert_fast::cuda
