// Attention of global layers on sm_90a, forward, for heads of 64. Reference: modernbert_fast/reference/attention.py.
//
// Two blocks share a multiprocessor: while warpgroups of one multiply, those of the other take exponentials, load their
// queries or store their results. A step's scores are multiplied together with the values of the step before. Reads 3HD
// and writes HD elements a token; 4 x keys x HD flops.
#include "sm90.cuh"

namespace modernbert_fast::cuda {
namespace {

constexpr int kKeys = 64, kStages = 4, kAhead = 2;
constexpr int kBlocks = 2;  // of a multiprocessor
using Ring = TileRing<kKeys, kStages>;
constexpr int kSharedBytes = 2 * (Ring::kBytes + Ring::kBarrierBytes);

struct Rings {
  Ring keys, values;
  __device__ __forceinline__ explicit Rings(char* memory)
      : keys(memory, memory + 2 * Ring::kBytes),
        values(memory + Ring::kBytes, memory + 2 * Ring::kBytes + Ring::kBarrierBytes) {}
};

/// One thread has the tiles of a step copied, if there is such a step. All of its warp come, done with earlier tiles.
__device__ __forceinline__ void bring(const Rings& rings, const TileMap& keys, const TileMap& values,
                                      const TileOrder<kKeys>& order, int head, int step) {
  const auto copy = [&](const Ring& ring, const TileMap& tiles) {
    ring.wait_empty(step);
    barrier_expect(ring.full(step), Ring::kTileBytes);
    copy_tile(ring.tile(step), tiles, order.row(step), head, ring.full(step));
  };
  sync_warp();
  if (threadIdx.x == 0 && step < order.tiles) {
    copy(rings.keys, keys);
    copy(rings.values, values);
  }
  sync_warp();
}

/// Keys from `seen` on are of other texts.
__device__ __forceinline__ void hide_from(Sums<1, kKeys>& scores, int seen) {
  scores.for_each([&](float& score, int, int n, int i) {
    if (8 * n + fragment_column() + i % 2 >= seen) score = -INFINITY;
  });
}

template <class T>
__device__ __forceinline__ void attend(const AttentionForward& args, const TileMap& keys, const TileMap& values,
                                       const Rings& rings, const OwnRows& rows, int head) {
  const AttentionGeometry& g = args.geometry;
  const TileOrder<kKeys> order(rows);
  const int first = first_row_of_warp(rows);
#pragma unroll
  for (int step = 0; step <= kAhead; ++step) bring(rings, keys, values, order, head, step);

  Factors q;
  uint32_t p[kKeys / 16][4];
  Sums<1, kKeys> s;
  RowSums o;
  o.clear();
  // Queries take the sign of the scale. A scale of nothing stays above zero, which -inf may not be multiplied by.
  OnlineSoftmax<1> softmax(fmaxf(fabsf(g.scale) * kLog2E, 1e-30f));
  load_own_rows<T>(q, args.q, first, rows.end, head);
  if (g.positions != nullptr) turn_own_rows<T>(q, g, first, rows.end);
  if (g.scale < 0)
#pragma unroll
    for (int i = 0; i < kHopperHead / 4; ++i) q[i / 4][i % 4] ^= 0x80008000u;

  rings.keys.wait_full(0);
  products_begin();
  begin_product_by_rows<T>(s, q, rings.keys.tile(0));
  if (order.seen < kKeys) {
    rings.values.wait_full(0);
    clear_tile_from<kKeys>(rings.values.tile(0), order.seen);
    cleared();
  }
  products_wait<0>();
  products_settle(s.at[0]);
  rings.keys.release(0);
  hide_from(s, order.seen);
  softmax.weigh(s);
  round_to<T>(p, s);

  for (int step = 1; step < order.tiles; ++step) {
    bring(rings, keys, values, order, head, step + kAhead);
    rings.keys.wait_full(step);
    products_begin();
    begin_product_by_rows<T>(s, q, rings.keys.tile(step));
    rings.values.wait_full(step - 1);
    begin_product_by_columns<T>(o, p, rings.values.tile(step - 1));
    products_wait<1>();
    products_settle(s.at[0]);
    rings.keys.release(step);
    softmax.weigh(s);
    products_wait<0>();
    products_settle(o.at[0]);
    rings.values.release(step - 1);
    softmax.shrink(o);
    round_to<T>(p, s);
  }

  rings.values.wait_full(order.tiles - 1);
  products_begin();
  begin_product_by_columns<T>(o, p, rings.values.tile(order.tiles - 1));
  products_wait<0>();
  products_settle(o.at[0]);

  softmax.finish(o, [&](int, int below, float value) {
    const int t = first + 8 * below + fragment_row();
    if (t < rows.end && lane_of_thread() % 4 == 0) args.lse[head * g.T + t] = value;
  });
  store_own_rows<T>(o, args.o, first, rows.end, head);
}

template <class T>
__global__ void __launch_bounds__(kConsumerThreads, kBlocks)
    forward_kernel(const AttentionForward args, const __grid_constant__ TileMap keys,
                   const __grid_constant__ TileMap values) {
  const int head = blockIdx.y;
  for_rows_of_no_text(args.geometry, [&](index_t t) {
    clear_row(of_head<T>(args.o, head), args.o.stride_t, t, kHopperHead);
    args.lse[head * args.geometry.T + t] = 0;
  });
  const OwnRows rows = own_rows<kHopperRows>(args.geometry, blockIdx.x);
  if (rows.first >= rows.end) return;
  const Rings rings(shared_memory());
  if (threadIdx.x == 0) {
    rings.keys.init(1);
    rings.values.init(1);
    barrier_init_done();
  }
  sync_block();
  attend<T>(args, keys, values, rings, rows, head);
}

template <class T>
void forward(AttentionForward args, cudaStream_t stream) {
  const AttentionGeometry& g = args.geometry;
  if (turns_beforehand(g)) turn_beforehand<T>(g, args.k, args.k, 1, args.turned_k, stream);
  launch(forward_kernel<T>, attention_grid(g), dim3(kConsumerThreads), kSharedBytes, stream, args,
         tile_map<T>(g, args.k, kKeys), tile_map<T>(g, args.v, kKeys));
}

}  // namespace

void attention_forward_sm90(const AttentionForward& args, cudaStream_t stream) {
  if (args.geometry.T == 0) return;
  args.dtype == HalfType::kFloat16 ? forward<Half>(args, stream) : forward<BFloat16>(args, stream);
}

}  // namespace modernbert_fast::cuda
