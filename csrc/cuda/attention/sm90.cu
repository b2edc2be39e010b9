// Attention of global layers on sm_90a, forward, for heads of 64: a warp that has tiles of keys and values copied ahead,
// and two warpgroups that take turns at the tensor cores, one multiplying while the other takes exponentials.
#include <hopper.cuh>
#include <warp.cuh>

#include "params.h"
#include "rotary.cuh"
#include "seqlen.cuh"

namespace modernbert_fast::cuda {
namespace {

constexpr int kHead = 64, kRows = 128, kKeys = 128, kStages = 3;
constexpr int kConsumers = kRows / 64, kThreads = (kConsumers + 1) * kWarpgroup;
constexpr int kTileBytes = kKeys * kHead * 2;
constexpr int kSharedBytes = 2 * kStages * kTileBytes + 4 * kStages * static_cast<int>(sizeof(Barrier));
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
constexpr int kBlocks16 = kKeys / 16, kEights = kKeys / 8;

enum NamedBarrier { kAllConsumers = 1, kTurn };  // kTurn + a consumer's number

/// Tiles of keys and values in flight. A full barrier counts the bytes, an empty one the consumers that are done.
struct Stages {
  char* keys;
  char* values;
  Barrier *full_keys, *full_values, *empty_keys, *empty_values;

  __device__ __forceinline__ explicit Stages(char* memory)
      : keys(memory),
        values(memory + kStages * kTileBytes),
        full_keys(reinterpret_cast<Barrier*>(memory + 2 * kStages * kTileBytes)),
        full_values(full_keys + kStages),
        empty_keys(full_values + kStages),
        empty_values(empty_keys + kStages) {}
};

/// The stage of a step, and the parity of its full barriers; an empty one's, which starts complete, is the other.
struct Step {
  int stage, parity;
  __device__ __forceinline__ explicit Step(int step) : stage(step % kStages), parity(step / kStages % 2) {}
};

/// This warp's products no longer read the stage.
__device__ __forceinline__ void release(Barrier* empty) {
  if (lane_of_thread() == 0) barrier_arrive(empty);
}

/// Tiles are taken from the last to the first, so that only the first step meets rows beyond the end of the text.
__device__ __forceinline__ int tile_of(int step, int tiles) { return tiles - 1 - step; }

__device__ __forceinline__ void produce(const Stages& stages, const TileMap& keys, const TileMap& values,
                                        const OwnRows& rows, int tiles, int head) {
  for (int step = 0; step < tiles; ++step) {
    const Step at(step);
    const int row = rows.start + tile_of(step, tiles) * kKeys;
    barrier_wait(stages.empty_keys + at.stage, at.parity ^ 1);
    barrier_expect(stages.full_keys + at.stage, kTileBytes);
    copy_tile(stages.keys + at.stage * kTileBytes, keys, row, head, stages.full_keys + at.stage);
    barrier_wait(stages.empty_values + at.stage, at.parity ^ 1);
    barrier_expect(stages.full_values + at.stage, kTileBytes);
    copy_tile(stages.values + at.stage * kTileBytes, values, row, head, stages.full_values + at.stage);
  }
}

/// Queries of this thread as factors: rows g and g + 8 of its warp's 16, turned; zero from the end of the text on.
template <class T>
__device__ __forceinline__ void load_queries(uint32_t (&q)[kHead / 16][4], const AttentionForward& args, int row,
                                             int end, int head) {
  const AttentionGeometry& g = args.geometry;
  const int column = 2 * (lane_of_thread() % 4);
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    const int t = row + 8 * below;
    const T* from = static_cast<const T*>(args.q.data) + t * args.q.stride_t + head * args.q.stride_h + column;
#pragma unroll
    for (int i = 0; i < kHead / 8; ++i)  // pairs of columns, eight apart
      q[i / 2][i % 2 * 2 + below] = t < end ? *reinterpret_cast<const uint32_t*>(from + 8 * i) : 0;
    if (g.positions == nullptr || t >= end) continue;
    const index_t angles = angles_of(g, t) + column;
#pragma unroll
    for (int i = 0; i < kHead / 16; ++i) {
      uint32_t &low = q[i / 2][i % 2 * 2 + below], &high = q[i / 2 + kHead / 32][i % 2 * 2 + below];
      const float2 a = unpack_2<T>(low), b = unpack_2<T>(high);
      const float2 cos = *reinterpret_cast<const float2*>(g.cos + angles + 8 * i);
      const float2 sin = *reinterpret_cast<const float2*>(g.sin + angles + 8 * i);
      low = pack_2<T>(a.x * cos.x - b.x * sin.x, a.y * cos.y - b.y * sin.y);
      high = pack_2<T>(b.x * cos.x + a.x * sin.x, b.y * cos.y + a.y * sin.y);
    }
  }
}

/// Values of rows beyond the end are of other texts: nothing times infinity is not a number, so they become zero.
__device__ __forceinline__ void clear_rows_from(char* tile, int first) {
  for (int i = first * 8 + static_cast<int>(threadIdx.x); i < kKeys * 8; i += kConsumers * kWarpgroup)
    *reinterpret_cast<uint4*>(tile + place_in_tile(i / 8, i % 8)) = make_uint4(0, 0, 0, 0);
}

/// The running softmax of two rows of a thread's quad. Scores become probabilities in place.
struct Softmax {
  float peak[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0}, shrink[2];

  /// `seen` keys of the tile belong to the text.
  template <bool kTail>
  __device__ __forceinline__ void take(float (&s)[kEights][4], float to_log2, int seen) {
    if (kTail) {
      const int column = 2 * (lane_of_thread() % 4);
#pragma unroll
      for (int i = 0; i < kEights; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (8 * i + column + j % 2 >= seen) s[i][j] = -INFINITY;
    }
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      float highest = peak[below];
#pragma unroll
      for (int i = 0; i < kEights; ++i) highest = fmaxf(highest, fmaxf(s[i][2 * below], s[i][2 * below + 1]));
      highest = fmaxf(highest, shuffle_xor(highest, 1));
      highest = fmaxf(highest, shuffle_xor(highest, 2));
      const float base = highest * to_log2;
      shrink[below] = exp2_approx(peak[below] * to_log2 - base);
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kEights; ++i)
#pragma unroll
        for (int j = 2 * below; j < 2 * below + 2; ++j) sum += s[i][j] = exp2_approx(s[i][j] * to_log2 - base);
      total[below] = total[below] * shrink[below] + sum;
      peak[below] = highest;
    }
  }
};

template <class T>
__device__ __forceinline__ void round_to(uint32_t (&p)[kBlocks16][4], const float (&s)[kEights][4]) {
#pragma unroll
  for (int i = 0; i < kEights; ++i) {
    p[i / 2][i % 2 * 2] = pack_2<T>(s[i][0], s[i][1]);
    p[i / 2][i % 2 * 2 + 1] = pack_2<T>(s[i][2], s[i][3]);
  }
}

template <class T>
__device__ __forceinline__ void scores(float (&s)[kEights][4], const uint32_t (&q)[kHead / 16][4], const char* keys) {
  const uint64_t factor = factor_in_tile(keys);
#pragma unroll
  for (int i = 0; i < kHead / 16; ++i) multiply_by_rows<T>(s, q[i], factor + i * 2, i > 0);
  products_commit();
}

template <class T>
__device__ __forceinline__ void add_values(float (&o)[kHead / 8][4], const uint32_t (&p)[kBlocks16][4],
                                           const char* values) {
  const uint64_t factor = factor_in_tile(values);
#pragma unroll
  for (int i = 0; i < kBlocks16; ++i) multiply_by_columns<T>(o, p[i], factor + i * (16 * 128 / 16));
  products_commit();
}

template <class T>
__device__ __forceinline__ void consume(const AttentionForward& args, const Stages& stages, const OwnRows& rows,
                                        int tiles, int head) {
  const int consumer = threadIdx.x / kWarpgroup;
  const auto my_turn = [&] { sync_threads(kTurn + consumer, kConsumers * kWarpgroup); };
  const auto your_turn = [&] { arrive_threads(kTurn + (consumer ^ 1), kConsumers * kWarpgroup); };
  const int row = rows.first + warp_of_thread() * 16 + lane_of_thread() / 4;
  const float to_log2 = args.geometry.scale * 1.4426950408889634f;

  uint32_t q[kHead / 16][4], p[kBlocks16][4];
  float s[kEights][4], o[kHead / 8][4] = {};
  Softmax softmax;
  load_queries<T>(q, args, row, rows.end, head);

  // The first step: the tile that may reach beyond the text.
  const int seen = rows.end - rows.start - tile_of(0, tiles) * kKeys;
  barrier_wait(stages.full_keys, 0);
  products_begin();
  scores<T>(s, q, stages.keys);
  if (seen < kKeys) {
    barrier_wait(stages.full_values, 0);
    clear_rows_from(stages.values, seen);
    fence_for_products();
    sync_threads(kAllConsumers, kConsumers * kWarpgroup);
  }
  products_wait<0>();
  products_settle(s);
  release(stages.empty_keys);
  softmax.take<true>(s, to_log2, seen);
  round_to<T>(p, s);
  if (consumer == 1) your_turn();  // the first consumer begins

  for (int step = 1; step < tiles; ++step) {
    const Step at(step), before(step - 1);
    barrier_wait(stages.full_keys + at.stage, at.parity);
    my_turn();
    products_begin();
    scores<T>(s, q, stages.keys + at.stage * kTileBytes);
    barrier_wait(stages.full_values + before.stage, before.parity);
    add_values<T>(o, p, stages.values + before.stage * kTileBytes);
    your_turn();
    products_wait<1>();
    products_settle(s);
    release(stages.empty_keys + at.stage);
    softmax.take<false>(s, to_log2, kKeys);
    products_wait<0>();
    products_settle(o);
    release(stages.empty_values + before.stage);
#pragma unroll
    for (int i = 0; i < kHead / 8; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) o[i][j] *= softmax.shrink[j / 2];
    round_to<T>(p, s);
  }
  if (consumer == 0) my_turn();  // takes the turn that nobody else will

  const Step last(tiles - 1);
  barrier_wait(stages.full_values + last.stage, last.parity);
  products_begin();
  add_values<T>(o, p, stages.values + last.stage * kTileBytes);
  products_wait<0>();
  products_settle(o);

#pragma unroll
  for (int below = 0; below < 2; ++below) {
    float total = softmax.total[below];
    total += shuffle_xor(total, 1);
    total += shuffle_xor(total, 2);
    const float share = 1 / total;
    const int t = row + 8 * below;
    if (t >= rows.end) continue;
    const int lane = lane_of_thread() % 4;
    T* to = static_cast<T*>(args.o.data) + t * args.o.stride_t + head * args.o.stride_h + 2 * lane;
#pragma unroll
    for (int i = 0; i < kHead / 8; ++i)
      *reinterpret_cast<uint32_t*>(to + 8 * i) = pack_2<T>(o[i][2 * below] * share, o[i][2 * below + 1] * share);
    if (lane == 0)
      args.lse[head * args.geometry.T + t] = softmax.peak[below] * args.geometry.scale + logf(total);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const AttentionForward args, const __grid_constant__ TileMap keys,
                   const __grid_constant__ TileMap values) {
  const int head = blockIdx.y;
  for_rows_of_no_text(args.geometry, [&](index_t t) {
    T* to = static_cast<T*>(args.o.data) + t * args.o.stride_t + head * args.o.stride_h;
    for (int d = 0; d < kHead; ++d) to[d] = from_float<T>(0);
    args.lse[head * args.geometry.T + t] = 0;
  });
  const OwnRows rows = own_rows<kRows>(args.geometry, blockIdx.x);
  if (rows.first >= rows.end) return;
  const int tiles = (rows.end - rows.start + kKeys - 1) / kKeys;
  const Stages stages(shared_memory());
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(stages.full_keys + i, 1);
      barrier_init(stages.full_values + i, 1);
      barrier_init(stages.empty_keys + i, kConsumers * kWarpgroup / kWarp);
      barrier_init(stages.empty_values + i, kConsumers * kWarpgroup / kWarp);
    }
    barrier_init_done();
  }
  sync_block();
  if (threadIdx.x >= kConsumers * kWarpgroup) {
    shrink_registers<kProducerRegisters>();
    if (threadIdx.x == kConsumers * kWarpgroup) produce(stages, keys, values, rows, tiles, head);
  } else {
    grow_registers<kConsumerRegisters>();
    consume<T>(args, stages, rows, tiles, head);
  }
}

template <class T>
void forward(AttentionForward args, cudaStream_t stream) {
  const AttentionGeometry& g = args.geometry;
  if (turns_beforehand(g)) turn_beforehand<T>(g, args.k, args.k, 1, args.turned_k, stream);
  const TileMap keys = tile_map<T>(args.k.data, g.T, g.H, args.k.stride_t, args.k.stride_h, kKeys);
  const TileMap values = tile_map<T>(args.v.data, g.T, g.H, args.v.stride_t, args.v.stride_h, kKeys);
  launch(forward_kernel<T>, attention_grid(g), dim3(kThreads), kSharedBytes, stream, args, keys, values);
}

}  // namespace

void attention_forward_sm90(const AttentionForward& args, cudaStream_t stream) {
  if (args.geometry.T == 0) return;
  args.dtype == HalfType::kFloat16 ? forward<Half>(args, stream) : forward<BFloat16>(args, stream);
}

}  // namespace modernbert_fast::cuda
