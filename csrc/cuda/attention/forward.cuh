// Attention, forward. Reference: modernbert_fast/reference/attention.py.
//
// A block takes kM queries of a text and head and meets the keys that they may see, kN at a time; each warp keeps its
// own queries, scores and sums in registers. Reads 3HD and writes HD elements a token; 4 x keys x HD flops.
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

constexpr int kStep = 32;  // twice as many spill where a warp has 32 rows, and under a window fewer can be passed over

template <class Chip, class T, int kHead, bool kWindowed>
struct ForwardBlock : Chip::template Forward<kHead, kWindowed> {
  using Shape = typename Chip::template Forward<kHead, kWindowed>;
  static constexpr int kThreads = Shape::kWarps * kWarp, kBands = Shape::kM / Shape::kWarps / 16;
  using Keys = typename Chip::template Stream<T, kHead, Shape::kN, kThreads>;
  static constexpr int kBytes = (Shape::kM * kHead + Keys::kElements) * sizeof(T);
  // Blocks a multiprocessor that registers leave room for: without a number ptxas spills for one more.
  static constexpr int kResident = kWindowed && kHead <= 64 ? 3 : 2;
  static_assert(kBytes <= Chip::kMostShared, "more shared memory than the chip has");
};

template <class Chip, class T, int kHead, bool kWindowed>
__global__ void __launch_bounds__(ForwardBlock<Chip, T, kHead, kWindowed>::kThreads,
                                  ForwardBlock<Chip, T, kHead, kWindowed>::kResident)
    forward_kernel(const AttentionForward args) {
  using Block = ForwardBlock<Chip, T, kHead, kWindowed>;
  constexpr int kM = Block::kM, kN = Block::kN, kBands = Block::kBands;
  const AttentionGeometry& g = args.geometry;
  const index_t head = blockIdx.y;
  T* const o_plane = of_head<T>(args.o, head);
  float* const lse = args.lse + head * g.T;
  for_rows_of_no_text(g, [&](index_t t) {
    clear_row(o_plane, args.o.stride_t, t, g.D);
    lse[t] = 0;
  });
  const OwnRows rows = own_rows<kM>(g, blockIdx.x);
  if (rows.first >= rows.end) return;
  int begin, end;
  reach<kM, kN>(rows, g.window, begin, end);

  T* const tile = reinterpret_cast<T*>(shared_memory());
  const bool turns = g.positions != nullptr;
  const RowPair<T> met = {of_head<T>(args.k, head), args.k.stride_t, of_head<T>(args.v, head),
                          args.v.stride_t,          rows.end,        turns && kWindowed};
  typename Block::Keys keys(tile + kM * kHead, met, g);
  keys.fetch(begin);
  {
    StagedRows<T, kHead, kM, Block::kThreads> own;
    own.load(of_head<T>(args.q, head), args.q.stride_t, rows.first, rows.end, g.D);
    if (turns) own.turn(g, rows.first, rows.end);
    if (g.scale < 0) own.negate();
    own.store(tile);
  }
  sync_block();
  const int own_row = warp_of_thread() * 16 * kBands, first = rows.first + own_row;
  const LeftSide<T, kHead, kBands, true> q(tile, own_row);
  const Mask mask(g, rows.end);
  // Queries have taken the sign of the scale. A scale of nothing stays above zero, which -inf may not be multiplied by.
  OnlineSoftmax<kBands> softmax(fmaxf(fabsf(g.scale) * kLog2E, 1e-30f));
  Sums<kBands, kHead> o;
  o.clear();
  for (int n0 = begin; n0 < end; n0 += kN) {
    keys.settle();
    if (n0 + kN < end) keys.fetch(n0 + kN);
#pragma unroll 1
    for (int step = 0; step < kN; step += kStep) {
      const int n1 = n0 + step;
      if (!mask.template reaches<16 * kBands, kStep>(first, n1)) continue;
      Sums<kBands, kStep> scores;
      multiply_by_rows<Chip, T, kHead>(scores, q, keys.x() + step * kHead);
      if (!mask.template is_open<16 * kBands, kStep>(first, n1)) {
        int places[kBands][2];
#pragma unroll
        for (int band = 0; band < kBands; ++band)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            places[band][half] = mask.place(first + 16 * band + 8 * half + fragment_row());
#pragma unroll
        for (int column = 0; column < kStep / 4; ++column) {
          const int n = n1 + column / 2 * 8 + column % 2 + fragment_column(), at_n = mask.place(n);
#pragma unroll
          for (int band = 0; band < kBands; ++band)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              if (!mask.sees(places[band][half], n, at_n))
                scores.at[band][column / 2][2 * half + column % 2] = -INFINITY;
        }
      }
      softmax.weigh(scores);
      softmax.shrink(o);
      add_product<Chip, T, kHead>(o, scores, keys.y() + step * kHead);
    }
  }

  softmax.finish(o, [&](int band, int half, float value) {
    const int t = first + 16 * band + 8 * half + fragment_row();
    if (t < rows.end && lane_of_thread() % 4 == 0) lse[t] = value;
  });
  store_sums<T, kHead>(o, tile, own_row);
  sync_block();
  store_rows<T, kHead, kM, Block::kThreads>(tile, o_plane, args.o.stride_t, rows.first, rows.end, g.D);
}

template <class Chip, class T, int kHead>
void launch_forward(const AttentionForward& args, cudaStream_t stream) {
  const auto start = [&](auto windowed) {
    using Block = ForwardBlock<Chip, T, kHead, decltype(windowed)::value>;
    launch(forward_kernel<Chip, T, kHead, decltype(windowed)::value>, attention_grid(args.geometry),
           dim3(Block::kThreads), Block::kBytes, stream, args);
  };
  if (args.geometry.window < 0)
    start(std::false_type{});
  else
    start(std::true_type{});
}

template <class Chip, class T>
void attention_forward(AttentionForward args, cudaStream_t stream) {
  const AttentionGeometry& g = args.geometry;
  if (turns_beforehand(g)) turn_beforehand<T>(g, args.k, args.k, 1, args.turned_k, stream);
  with_head_of_tiles(g.D, [&](auto head) { launch_forward<Chip, T, decltype(head)::value>(args, stream); });
}

}  // namespace modernbert_fast::cuda
