// Padded batch <-> packed rows. Reference: modernbert_fast/reference/padding.py
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../checks/padding.h"
#include "binding.h"
#include "warp.cuh"

namespace modernbert_fast::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kScanBytes = 2 * (kWarps + 1) * sizeof(int64_t);

/// Sums over the threads of a block before each of them, again and again. Two halves of shared memory take turns, so
/// that one barrier a time is enough.
class Scan {
 public:
  /// The sum of the values of the threads below this one; total becomes that of all.
  __device__ int64_t before(int64_t value, int64_t* total) {
    int64_t sum = value;
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int64_t below = shuffle_up(sum, distance);
      if (lane_of_thread() >= distance) sum += below;
    }
    int64_t* const of_warps = reinterpret_cast<int64_t*>(shared_memory()) + turn_ * (kWarps + 1);
    turn_ ^= 1;
    if (lane_of_thread() == kWarp - 1) of_warps[warp_of_thread()] = sum;
    sync_block();
    int64_t before = sum - value;
    *total = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      if (warp < warp_of_thread()) before += of_warps[warp];
      *total += of_warps[warp];
    }
    return before;
  }

 private:
  int turn_ = 0;
};

/// starts (B + 1,): what lies before each text, and at the end the total. One block.
template <class Length>
__global__ void __launch_bounds__(kThreads) starts_kernel(Length length, int64_t texts, int64_t* starts) {
  Scan scan;
  int64_t base = 0;
  for (int64_t first = 0; first < texts; first += kThreads) {
    const int64_t b = first + threadIdx.x;
    int64_t total = 0;
    const int64_t before = scan.before(b < texts ? length(b) : 0, &total);
    if (b < texts) starts[b] = base + before;
    base += total;
  }
  if (threadIdx.x == 0) starts[texts] = base;
}

struct Counted {
  const int64_t* counts;
  __device__ int64_t operator()(int64_t b) const { return counts[b]; }
};

/// Tiles of text b, whatever cu_seqlens says: its bounds are held inside [0, total].
struct TilesOfText {
  const int32_t* cu_seqlens;
  int64_t total, rows;
  __device__ int64_t inside(int64_t bound) const { return bound < 0 ? 0 : bound > total ? total : bound; }
  __device__ int64_t operator()(int64_t b) const {
    const int64_t length = inside(cu_seqlens[b + 1]) - inside(cu_seqlens[b]);
    return length > 0 ? (length + rows - 1) / rows : 0;
  }
};

/// counts (B,) of the tokens of each row of mask (B, S): a block for a row.
template <class T>
__global__ void __launch_bounds__(kThreads) count_kernel(const T* mask, int64_t B, int64_t S, int64_t* counts) {
  Scan scan;
  for (int64_t b = blockIdx.x; b < B; b += gridDim.x) {
    int64_t own = 0, total = 0;
    for (int64_t s = threadIdx.x; s < S; s += kThreads) own += mask[b * S + s] != 0;
    scan.before(own, &total);
    if (threadIdx.x == 0) counts[b] = total;
  }
}

/// Where the tokens lie, row by row: indices, and positions counted from the column of the first token.
template <class T>
__global__ void __launch_bounds__(kThreads) plan_kernel(const T* mask, int64_t B, int64_t S, const int64_t* starts,
                                                        int64_t* indices, int32_t* cu_seqlens, int32_t* positions) {
  Scan scan;
  for (int64_t b = blockIdx.x; b < B; b += gridDim.x) {
    const int64_t start = starts[b], end = starts[b + 1];
    int64_t base = start;
    for (int64_t first = 0; first < S && base < end; first += kThreads) {
      const int64_t s = first + threadIdx.x;
      const bool is_token = s < S && mask[b * S + s] != 0;
      int64_t total = 0;
      const int64_t t = base + scan.before(is_token, &total);
      if (is_token) indices[t] = b * S + s;
      base += total;
    }
    sync_block();  // what other threads wrote: the index of the first token
    const int64_t column = end > start ? indices[start] : 0;
    for (int64_t t = start + threadIdx.x; t < end; t += kThreads)
      positions[t] = static_cast<int32_t>(indices[t] - column);
    if (threadIdx.x == 0) cu_seqlens[b + 1] = static_cast<int32_t>(end);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) cu_seqlens[0] = 0;
}

/// tiles (count, 2): each entry looks for its text among the starts, so that nothing is written elsewhere.
__global__ void __launch_bounds__(kThreads)
    tiles_kernel(const int64_t* starts, int64_t texts, int64_t rows, int64_t count, int2* tiles) {
  for (int64_t slot = blockIdx.x * int64_t{kThreads} + threadIdx.x; slot < count;
       slot += gridDim.x * int64_t{kThreads}) {
    int64_t low = 0, high = texts;  // the first text that ends beyond the slot
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (starts[middle + 1] > slot)
        high = middle;
      else
        low = middle + 1;
    }
    tiles[slot] = low < texts ? make_int2(static_cast<int>(low), static_cast<int>((slot - starts[low]) * rows))
                              : make_int2(-1, 0);
  }
}

/// sources[indices[t]] = t; of equal indices the last wins. Those outside [0, rows) name nothing.
__global__ void __launch_bounds__(kThreads)
    sources_kernel(const int64_t* indices, int64_t count, int64_t rows, int64_t* sources) {
  for (int64_t t = blockIdx.x * int64_t{kThreads} + threadIdx.x; t < count; t += gridDim.x * int64_t{kThreads})
    if (indices[t] >= 0 && indices[t] < rows) atomic_max(sources + indices[t], t);
}

/// y[i] = x[sources[i]], zero where that names no row of x. Rows of `units` units; 2^log_lanes threads share a row.
template <class Unit>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const Unit* x, int64_t x_stride, int64_t x_rows, const int64_t* sources, int64_t count, int64_t units,
                  int log_lanes, Unit* y) {
  const int lane = threadIdx.x & ((1 << log_lanes) - 1), rows = kThreads >> log_lanes;
  for (int64_t i = blockIdx.x * int64_t{rows} + (threadIdx.x >> log_lanes); i < count; i += gridDim.x * int64_t{rows}) {
    const int64_t source = sources[i];
    const bool named = source >= 0 && source < x_rows;
    for (int64_t u = lane; u < units; u += 1 << log_lanes) y[i * units + u] = named ? x[source * x_stride + u] : Unit{};
  }
}

/// y (count, *) of the rows of x that sources name, moved in the widest units that fit.
Tensor gather(const Tensor& x, const Tensor& sources, cudaStream_t stream) {
  const RowsOfBytes from(x);
  const int64_t count = sources.size(0);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes[0] = count;
  Tensor y = new_tensor(x, sizes.data(), x.dim(), x.scalar_type());
  if (y.numel() == 0) return y;
  const auto moved_as = [&](auto unit) {
    using Unit = decltype(unit);
    constexpr int64_t kBytes = sizeof(Unit);
    if (from.row_bytes % kBytes || from.stride_bytes % kBytes ||
        reinterpret_cast<uintptr_t>(data<char>(from.x)) % kBytes)
      return false;
    const int64_t units = from.row_bytes / kBytes;
    int log_lanes = 0;
    while ((kThreads >> log_lanes) > 1 && (1 << log_lanes) < units) ++log_lanes;
    launch(gather_kernel<Unit>, grid_of(ceil_div(count, kThreads >> log_lanes)), dim3(kThreads), 0, stream,
           data<Unit>(from.x), from.stride_bytes / kBytes, x.size(0), data<int64_t>(sources), count, units, log_lanes,
           mutable_data<Unit>(y));
    return true;
  };
  moved_as(uint4()) || moved_as(uint2()) || moved_as(uint32_t()) || moved_as(uint16_t()) || moved_as(uint8_t());
  return y;
}

/// starts (B + 1,) int64 on the device: see starts_kernel.
template <class Length>
Tensor starts_of(const Tensor& like, const Length& length, int64_t texts, cudaStream_t stream) {
  Tensor starts = new_tensor(like, {texts + 1}, ScalarType::Long);
  launch(starts_kernel<Length>, dim3(1), dim3(kThreads), kScanBytes, stream, length, texts,
         mutable_data<int64_t>(starts));
  return starts;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> plan_as(const Tensor& mask, cudaStream_t stream) {
  const int64_t B = mask.size(0), S = mask.size(1);
  const Tensor counts = new_tensor(mask, {B}, ScalarType::Long);
  launch(count_kernel<T>, grid_of(B), dim3(kThreads), kScanBytes, stream, data<T>(mask), B, S,
         mutable_data<int64_t>(counts));
  const Tensor starts = starts_of(mask, Counted{data<int64_t>(counts)}, B, stream);

  // The one number that the host waits for: results have its size.
  int64_t tokens = 0;
  check_cuda(cudaMemcpyAsync(&tokens, data<int64_t>(starts) + B, sizeof(tokens), cudaMemcpyDeviceToHost, stream));
  check_cuda(cudaStreamSynchronize(stream));
  check_total(tokens);

  const Tensor indices = new_tensor(mask, {tokens}, ScalarType::Long);
  const Tensor cu_seqlens = new_tensor(mask, {B + 1}, ScalarType::Int);
  const Tensor positions = new_tensor(mask, {tokens}, ScalarType::Int);
  launch(plan_kernel<T>, grid_of(B > 0 ? B : 1), dim3(kThreads), kScanBytes, stream, data<T>(mask), B, S,
         data<int64_t>(starts), mutable_data<int64_t>(indices), mutable_data<int32_t>(cu_seqlens),
         mutable_data<int32_t>(positions));
  return {indices, cu_seqlens, positions};
}

std::tuple<Tensor, Tensor, Tensor> padding_plan(const Tensor& mask_in) {
  check_mask(mask_in);
  const OnDeviceOf device(mask_in);
  const Tensor mask = as_contiguous(mask_in);
  switch (mask.element_size()) {
    case 1: return plan_as<uint8_t>(mask, device.stream());
    case 4: return plan_as<int32_t>(mask, device.stream());
    default: return plan_as<int64_t>(mask, device.stream());
  }
}

Tensor padding_unpad(const Tensor& x, const Tensor& indices) {
  check_unpad(x, indices);
  const OnDeviceOf device(x);
  return gather(x, as_contiguous(indices), device.stream());
}

Tensor padding_pad(const Tensor& x, const Tensor& indices_in, int64_t rows) {
  check_pad(x, indices_in, rows);
  const OnDeviceOf device(x);
  const Tensor indices = as_contiguous(indices_in);
  const Tensor sources = new_tensor(x, {rows}, ScalarType::Long);
  if (rows > 0)
    check_cuda(cudaMemsetAsync(mutable_data<void>(sources), 0xff, rows * sizeof(int64_t), device.stream()));  // all -1
  launch(sources_kernel, grid_of(ceil_div(indices.size(0), kThreads)), dim3(kThreads), 0, device.stream(),
         data<int64_t>(indices), indices.size(0), rows, mutable_data<int64_t>(sources));
  return gather(x, sources, device.stream());
}

Tensor padding_tiles(const Tensor& cu_seqlens_in, int64_t total, int64_t rows) {
  check_tiles(cu_seqlens_in, total, rows);
  const OnDeviceOf device(cu_seqlens_in);
  const Tensor cu_seqlens = as_contiguous(cu_seqlens_in);
  const int64_t B = cu_seqlens.size(0) - 1, count = total / rows + B;
  const Tensor starts = starts_of(cu_seqlens, TilesOfText{data<int32_t>(cu_seqlens), total, rows}, B, device.stream());
  Tensor tiles = new_tensor(cu_seqlens, {count, 2}, ScalarType::Int);
  launch(tiles_kernel, grid_of(ceil_div(count, kThreads)), dim3(kThreads), 0, device.stream(), data<int64_t>(starts), B,
         rows, count, mutable_data<int2>(tiles));
  return tiles;
}

}  // namespace

}  // namespace modernbert_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, MODERNBERT_FAST_DEVICE, m) {
  using namespace modernbert_fast::cuda;
  m.impl("padding_plan", TORCH_BOX(&padding_plan));
  m.impl("padding_unpad", TORCH_BOX(&padding_unpad));
  m.impl("padding_pad", TORCH_BOX(&padding_pad));
  m.impl("padding_tiles", TORCH_BOX(&padding_tiles));
}
