// Attention of global layers on sm_90a, backward, for heads of 64. Reference: modernbert_fast/reference/attention.py.
//
// The two passes of backward.cuh with warpgroups: own rows are factors in registers, rows that are met come as tiles.
//
//   own (dq)   q, gradient     meets k, v            dq += ds k
//   own (dkv)  k, v            meets q, gradient     dk += ds q, dv += p gradient
//
// with p = exp(own . met - lse) and ds = p (own . met of the second planes - delta). Reads 5HD and writes 3HD elements
// a token; 14 x keys x HD flops.
#include "sm90.cuh"

namespace modernbert_fast::cuda {
namespace {

constexpr int kThreads = kConsumerThreads + kWarpgroup;  // of which one warp has tiles copied
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
constexpr int kMet = 64, kStages = 4;
using Ring = TileRing<2 * kMet, kStages>;  // a tile of each plane that is met, one below the other
constexpr int kSecondTile = Ring::kTileBytes / 2;
constexpr int kStatistics = 2 * kMet;  // floats of a stage: lse as an exponent of two, and delta
constexpr int kSharedBytes =
    Ring::kBytes + kStages * kStatistics * static_cast<int>(sizeof(float)) + Ring::kBarrierBytes;

struct Met {
  Ring ring;
  float* statistics;
  __device__ __forceinline__ explicit Met(char* memory)
      : ring(memory, memory + kSharedBytes - Ring::kBarrierBytes),
        statistics(reinterpret_cast<float*>(memory + Ring::kBytes)) {}
  __device__ __forceinline__ float* of(int step) const { return statistics + Ring::stage(step) * kStatistics; }
};

/// One warp. Its lanes bring the statistics of rows that are met, if `lse` is given.
__device__ __forceinline__ void produce(const Met& met, const TileMap& x, const TileMap& y,
                                        const TileOrder<kMet>& order, int head, const float* lse, const float* delta,
                                        int end) {
  for (int step = 0; step < order.tiles; ++step) {
    const int row = order.row(step);
    met.ring.wait_empty(step);
    if (lane_of_thread() == 0) {
      barrier_expect(met.ring.full(step), Ring::kTileBytes);
      copy_tile(met.ring.tile(step), x, row, head, met.ring.full(step));
      copy_tile(met.ring.tile(step) + kSecondTile, y, row, head, met.ring.full(step));
    }
    if (lse == nullptr) continue;
    for (int i = lane_of_thread(); i < kMet; i += kWarp) {
      met.of(step)[i] = row + i < end ? lse[row + i] * kLog2E : 0;
      met.of(step)[kMet + i] = row + i < end ? delta[row + i] : 0;
    }
    barrier_arrive(met.ring.full(step));
  }
}

template <class T, bool kOfKeys>
__device__ __forceinline__ void consume(const AttentionBackward& args, const Met& met, const OwnRows& rows,
                                        const TileOrder<kMet>& order, int head) {
  const AttentionGeometry& g = args.geometry;
  const int first = first_row_of_warp(rows), column = fragment_column();
  const float to_log2 = g.scale * kLog2E;
  float own_lse[2] = {}, own_delta[2] = {};
  Factors left, second_left;
  load_own_rows<T>(left, kOfKeys ? args.k : args.q, first, rows.end, head);
  load_own_rows<T>(second_left, kOfKeys ? args.v : args.gradient, first, rows.end, head);
  if (!kOfKeys) {
    Factors o;
    load_own_rows<T>(o, args.o, first, rows.end, head);
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kHopperHead / 8; ++i) {
        const float2 x = unpack_2<T>(part(o, i, below)), y = unpack_2<T>(part(second_left, i, below));
        sum += x.x * y.x + x.y * y.y;
      }
      own_delta[below] = row_sum(sum);
      const int t = first + 8 * below + fragment_row();
      if (t >= rows.end) continue;
      own_lse[below] = args.lse[head * g.T + t] * kLog2E;
      if (column == 0) args.delta[head * g.T + t] = own_delta[below];
    }
  }

  RowSums sums, dv;
  sums.clear();
  dv.clear();
  uint32_t rounded[kMet / 16][4], rounded_p[kMet / 16][4];
  Sums<1, kMet> p, ds;
  for (int step = 0; step < order.tiles; ++step) {
    char* const x = met.ring.tile(step);
    char* const y = x + kSecondTile;
    const int seen = step == 0 ? order.seen : kMet;
    met.ring.wait_full(step);
    if (seen < kMet) {
      clear_tile_from<kMet>(x, seen);
      clear_tile_from<kMet>(y, seen);
      cleared();
    }
    products_begin();
    begin_product_by_rows<T>(p, left, x);
    begin_product_by_rows<T>(ds, second_left, y);
    products_wait<1>();
    products_settle(p.at[0]);
    p.for_each([&](float& at, int, int n, int i) {
      const int met_row = 8 * n + column + i % 2;
      const float lse = kOfKeys ? met.of(step)[met_row] : own_lse[i / 2];
      const float weight = exp2_approx(fmaf(at, to_log2, -lse));
      at = met_row < seen ? weight : 0;
    });
    if (kOfKeys) {
      round_to<T>(rounded_p, p);
      products_begin();
      begin_product_by_columns<T>(dv, rounded_p, y);
      products_wait<1>();
    } else {
      products_wait<0>();
    }
    products_settle(ds.at[0]);
    ds.for_each([&](float& at, int, int n, int i) {
      const float delta = kOfKeys ? met.of(step)[kMet + 8 * n + column + i % 2] : own_delta[i / 2];
      at = p.at[0][n][i] * (at - delta);
    });
    round_to<T>(rounded, ds);
    products_begin();
    begin_product_by_columns<T>(sums, rounded, x);
    products_wait<0>();
    products_settle(sums.at[0]);
    if (kOfKeys) products_settle(dv.at[0]);
    met.ring.release(step);
  }

  if (g.positions != nullptr) turn_back<kHopperHead>(sums, g, first, rows.end);
  sums.for_each([&](float& sum, int, int, int) { sum *= g.scale; });
  store_own_rows<T>(sums, kOfKeys ? args.dk : args.dq, first, rows.end, head);
  if (kOfKeys) store_own_rows<T>(dv, args.dv, first, rows.end, head);
}

template <class T, bool kOfKeys>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(const AttentionBackward args, const __grid_constant__ TileMap x,
                    const __grid_constant__ TileMap y) {
  const AttentionGeometry& g = args.geometry;
  const int head = blockIdx.y;
  for_rows_of_no_text(g, [&](index_t t) {
    const MutablePlane& result = kOfKeys ? args.dk : args.dq;
    clear_row(of_head<T>(result, head), result.stride_t, t, kHopperHead);
    if (kOfKeys) clear_row(of_head<T>(args.dv, head), args.dv.stride_t, t, kHopperHead);
  });
  const OwnRows rows = own_rows<kHopperRows>(g, blockIdx.x);
  if (rows.first >= rows.end) return;
  const TileOrder<kMet> order(rows);
  const Met met(shared_memory());
  if (threadIdx.x == 0) {
    met.ring.init(kOfKeys ? 1 + kWarp : 1);
    barrier_init_done();
  }
  sync_block();
  if (threadIdx.x >= kConsumerThreads) {
    shrink_registers<kProducerRegisters>();
    if (threadIdx.x < kConsumerThreads + kWarp)
      produce(met, x, y, order, head, kOfKeys ? args.lse + head * g.T : nullptr, args.delta + head * g.T, rows.end);
  } else {
    grow_registers<kConsumerRegisters>();
    consume<T, kOfKeys>(args, met, rows, order, head);
  }
}

template <class T>
void backward(AttentionBackward args, cudaStream_t stream) {
  const AttentionGeometry& g = args.geometry;
  if (turns_beforehand(g)) turn_beforehand<T>(g, args.q, args.k, 2, args.turned_qk, stream);
  const auto start = [&](auto kernel, const Plane& x, const Plane& y) {
    launch(kernel, attention_grid(g), dim3(kThreads), kSharedBytes, stream, args, tile_map<T>(g, x, kMet),
           tile_map<T>(g, y, kMet));
  };
  start(backward_kernel<T, false>, args.k, args.v);  // the pass for dq, which leaves delta to the other
  start(backward_kernel<T, true>, args.q, args.gradient);
}

}  // namespace

void attention_backward_sm90(const AttentionBackward& args, cudaStream_t stream) {
  if (args.geometry.T == 0) return;
  args.dtype == HalfType::kFloat16 ? backward<Half>(args, stream) : backward<BFloat16>(args, stream);
}

}  // namespace modernbert_fast::cuda
