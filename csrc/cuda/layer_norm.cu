// Layer norm alone, with the residual add, with the embedding gather. Reference:
// modernbert_fast/reference/layer_norm.py
//
// More than 400 lines: forward and backward share how a row lies in the registers of a warp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "../checks/layer_norm.h"
#include "binding.h"
#include "bindings.h"
#include "warp.cuh"

namespace modernbert_fast::cuda {

namespace {

// Elements of a row that a lane holds in registers: a warp holds rows of 1,024, a block those of 8,192.
constexpr int kHeld = 32;
constexpr int kColumns = kHeld * kWarp;
constexpr int kMostWarps = 8;
constexpr int kForwardWarps = 4, kBackwardWarps = 8;  // of a block whose warps have rows of their own
// Blocks of the backward, each with one partial sum of the weight's gradient: two for each multiprocessor of the
// largest chips. The same everywhere, so that the sums are.
constexpr int kPartials = 296;
constexpr int kReduceWarps = 16;

/// The warps that share a row, and sums over all their lanes. `shared` has room for kMostWarps floats a slot.
struct Team {
  float* shared;
  int warps;

  __device__ int warp() const { return warp_of_thread() % warps; }
  __device__ int number() const { return warp_of_thread() / warps; }
  __device__ int of_block() const { return blockDim.x / kWarp / warps; }

  /// Slots take turns: between two uses of one lies a sum in another slot, so that nobody still reads it.
  __device__ float sum(float value, int slot) const {
    value = warp_sum(value);
    if (warps == 1) return value;
    if (lane_of_thread() == 0) shared[slot * kMostWarps + warp_of_thread()] = value;
    sync_block();
    float total = 0;
    for (int warp = 0; warp < warps; ++warp) total += shared[slot * kMostWarps + warp];
    return total;
  }
};
constexpr int kTeamBytes = 4 * kMostWarps * sizeof(float);  // four slots

/// body(c, at): for each pack of columns of this lane its first column, and where it stands among the held elements.
/// A warp has kColumns columns in one piece, so that all offsets but the first are known to the compiler.
template <int kPack, class Body>
__device__ __forceinline__ void for_columns(int C, const Team& team, const Body& body) {
  const int first = team.warp() * kColumns + lane_of_thread() * kPack;
#pragma unroll
  for (int i = 0; i < kHeld / kPack; ++i) {
    const int c = first + i * kWarp * kPack;
    if (c < C) body(c, i * kPack);
  }
}

template <class X>
struct ForwardArgs {
  const X* x;
  int64_t x_stride;
  const void* ids;  // which rows of x, or null for all
  bool wide_ids;
  int64_t x_rows;
  const void *residual, *weight, *bias;  // null where absent
  int64_t residual_stride;
  void *sum, *y;
  float *mean, *rstd;
  int64_t rows;
  int C;
  float eps;
};

/// The row of x for row t; -1 for an id that the table does not have, which reads as zeros.
template <class X>
__device__ __forceinline__ int64_t row_of(const ForwardArgs<X>& a, int64_t t) {
  if (a.ids == nullptr) return t;
  const int64_t id = a.wide_ids ? static_cast<const int64_t*>(a.ids)[t] : static_cast<const int32_t*>(a.ids)[t];
  return id < 0 || id >= a.x_rows ? -1 : id;
}

// One block a multiprocessor is asked for, though more fit: else ptxas spills on sm_120 to fit one more.

/// X: of x; S: of the stream, that is of residual, sum and y; W: of weight and bias.
template <class X, class S, class W, int kPack>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    layer_norm_forward_kernel(const __grid_constant__ ForwardArgs<X> a, int warps_per_row) {
  const Team team = {reinterpret_cast<float*>(shared_memory()), warps_per_row};
  const int64_t teams = team.of_block();
  const auto* residual = static_cast<const S*>(a.residual);
  const auto* weight = static_cast<const W*>(a.weight);
  const auto* bias = static_cast<const W*>(a.bias);
  const int C = a.C;
  for (int64_t t = blockIdx.x * teams + team.number(); t < a.rows; t += gridDim.x * teams) {
    const int64_t source = row_of(a, t);
    float row[kHeld], total = 0;
    const auto load_pack = [&](int c, X(&x)[kPack], S(&added)[kPack]) {
      if (source >= 0) {
        load(x, a.x + source * a.x_stride + c);
      } else {
#pragma unroll
        for (int i = 0; i < kPack; ++i) x[i] = X{};
      }
      if (residual != nullptr) load(added, residual + t * a.residual_stride + c);
    };
    const auto hold_pack = [&](int c, int at, const X(&x)[kPack], S(&added)[kPack]) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        if (residual != nullptr) added[i] = from_float<S>(to_float(added[i]) + to_float(x[i]));
        row[at + i] = residual != nullptr ? to_float(added[i]) : to_float(x[i]);
        total += row[at + i];
      }
      if (residual != nullptr) store(static_cast<S*>(a.sum) + t * C + c, added);
    };
    if constexpr (kPack > 1) {
      // All loads first: a load waits for a store before it, whose address may be its own for all the compiler knows.
      X x[kHeld / kPack][kPack];
      S added[kHeld / kPack][kPack];
      for_columns<kPack>(C, team, [&](int c, int at) { load_pack(c, x[at / kPack], added[at / kPack]); });
      for_columns<kPack>(C, team, [&](int c, int at) { hold_pack(c, at, x[at / kPack], added[at / kPack]); });
    } else {  // one element at a time takes more registers for addresses
      for_columns<kPack>(C, team, [&](int c, int at) {
        X x[kPack];
        S added[kPack];
        load_pack(c, x, added);
        hold_pack(c, at, x, added);
      });
    }

    // The fp32 mean of an offset row is off by an ulp of the offset, which can exceed the spread: correct it.
    const float mean = team.sum(total, 0) / C;
    float centred = 0;
    for_columns<kPack>(C, team, [&](int, int at) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        row[at + i] -= mean;
        centred += row[at + i];
      }
    });
    const float correction = team.sum(centred, 1) / C;
    float squares = 0;
    for_columns<kPack>(C, team, [&](int, int at) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        row[at + i] -= correction;
        squares += row[at + i] * row[at + i];
      }
    });
    const float rstd = 1 / sqrtf(team.sum(squares, 2) / C + a.eps);

    for_columns<kPack>(C, team, [&](int c, int at) {
      W w[kPack], b[kPack];
      if (weight != nullptr) load(w, weight + c);
      if (bias != nullptr) load(b, bias + c);
      S y[kPack];
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        float normed = row[at + i] * rstd;
        if (weight != nullptr) normed *= to_float(w[i]);
        if (bias != nullptr) normed += to_float(b[i]);
        y[i] = from_float<S>(normed);
      }
      store(static_cast<S*>(a.y) + t * C + c, y);
    });
    if (team.warp() == 0 && lane_of_thread() == 0) {
      a.mean[t] = mean + correction;
      a.rstd[t] = rstd;
    }
  }
}

template <class T>
struct BackwardArgs {
  const T *dy, *dsum, *x;  // dsum may be null
  int64_t dy_stride, dsum_stride, x_stride;
  const void* weight;
  const float *mean, *rstd;
  T* dx;
  float *dweight, *dbias;  // (gridDim.x, C) partial sums, null where not wanted
  int64_t rows;
  int C;
};

/// Adds what the teams of a block hold, team after team, and writes it as the block's partial sum.
template <int kPack>
__device__ void write_partial(const float (&held)[kHeld], float* partial, int C, const Team& team) {
  float* sums = reinterpret_cast<float*>(shared_memory() + kTeamBytes);
  for (int turn = 0; turn < team.of_block(); ++turn) {
    if (team.number() == turn)
      for_columns<kPack>(C, team, [&](int c, int at) {
#pragma unroll
        for (int i = 0; i < kPack; ++i) sums[c + i] = held[at + i] + (turn > 0 ? sums[c + i] : 0);
      });
    sync_block();
  }
  for (int c = threadIdx.x; c < C; c += blockDim.x) partial[blockIdx.x * int64_t{C} + c] = sums[c];
  sync_block();
}

template <class T, class W, int kPack, bool kBias>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    layer_norm_backward_kernel(const __grid_constant__ BackwardArgs<T> a, int warps_per_row) {
  const Team team = {reinterpret_cast<float*>(shared_memory()), warps_per_row};
  const int64_t teams = team.of_block();
  const auto* weight = static_cast<const W*>(a.weight);
  const int C = a.C;
  // One element at a time takes more registers for addresses: dy is then read twice.
  constexpr bool kHoldsGradient = kPack > 1;
  float dweight[kHeld] = {}, dbias[kBias ? kHeld : 1] = {};

  for (int64_t t = blockIdx.x * teams + team.number(); t < a.rows; t += gridDim.x * teams) {
    // The saved mean is one fp32 number: what rounding it lost is in the mean of x - mean.
    const float mean = a.mean[t], rstd = a.rstd[t];
    T x[kHeld], g[kHoldsGradient ? kHeld : kPack];
    float centred = 0;
    for_columns<kPack>(C, team, [&](int c, int at) {
      load(reinterpret_cast<T(&)[kPack]>(x[at]), a.x + t * a.x_stride + c);
      if constexpr (kHoldsGradient) load(reinterpret_cast<T(&)[kPack]>(g[at]), a.dy + t * a.dy_stride + c);
#pragma unroll
      for (int i = 0; i < kPack; ++i) centred += to_float(x[at + i]) - mean;
    });
    const float correction = team.sum(centred, 0) / C;

    float dnormed_sum = 0, projection = 0;
    const auto normed_of = [&](T value) { return (to_float(value) - mean - correction) * rstd; };
    const auto for_gradients = [&](const auto& body) {  // body(c, at, dy of the pack, dnormed of the pack)
      for_columns<kPack>(C, team, [&](int c, int at) {
        W w[kPack];
        if (weight != nullptr) load(w, weight + c);
        if constexpr (!kHoldsGradient) load(g, a.dy + t * a.dy_stride + c);
        float gradient[kPack], dnormed[kPack];
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          gradient[i] = to_float(g[kHoldsGradient ? at + i : i]);
          dnormed[i] = gradient[i] * (weight != nullptr ? to_float(w[i]) : 1);
        }
        body(c, at, gradient, dnormed);
      });
    };
    for_gradients([&](int, int at, const float (&gradient)[kPack], const float (&dnormed)[kPack]) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float normed = normed_of(x[at + i]);
        dnormed_sum += dnormed[i];
        projection += dnormed[i] * normed;
        dweight[at + i] += gradient[i] * normed;
        if constexpr (kBias) dbias[at + i] += gradient[i];
      }
    });
    const float mean_dnormed = team.sum(dnormed_sum, 1) / C, mean_projection = team.sum(projection, 2) / C;

    for_gradients([&](int c, int at, const float (&)[kPack], const float (&dnormed)[kPack]) {
      T dsum[kPack], dx[kPack];
      if (a.dsum != nullptr) load(dsum, a.dsum + t * a.dsum_stride + c);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        float d = rstd * (dnormed[i] - mean_dnormed - normed_of(x[at + i]) * mean_projection);
        if (a.dsum != nullptr) d += to_float(dsum[i]);
        dx[i] = from_float<T>(d);
      }
      store(a.dx + t * C + c, dx);
    });
  }

  if (a.dweight != nullptr) write_partial<kPack>(dweight, a.dweight, C, team);
  if constexpr (kBias) write_partial<kPack>(dbias, a.dbias, C, team);
}

/// partial (partials, C) -> total (C,): a block for 32 columns, its warps share the rows and meet in shared memory.
__global__ void __launch_bounds__(kReduceWarps* kWarp)
    layer_norm_reduce_kernel(const float* partial, int partials, int C, float* total) {
  float* of_warps = reinterpret_cast<float*>(shared_memory());
  const int lane = lane_of_thread(), warp = warp_of_thread(), c = blockIdx.x * kWarp + lane;
  float sum = 0;
  if (c < C)
    for (int p = warp; p < partials; p += kReduceWarps) sum += partial[p * int64_t{C} + c];
  of_warps[warp * kWarp + lane] = sum;
  sync_block();
  if (warp > 0 || c >= C) return;
  for (int other = 1; other < kReduceWarps; ++other) sum += of_warps[other * kWarp + lane];
  total[c] = sum;
}

void check_width(int64_t C) {
  check(C <= kColumns * kMostWarps, "rows of ", C, " columns: at most ", kColumns * kMostWarps);
}

template <class T>
const T* optional_data(const std::optional<Tensor>& x) {
  return x ? data<T>(*x) : nullptr;
}

/// Whether packs of T start where 16 bytes do in every row of x (or in x as one row); an absent tensor does not mind.
template <class T>
bool packs(const std::optional<Tensor>& x) {
  return !x || rows_of_16(data<T>(*x), x->dim() > 1 ? x->stride(0) : 0);
}

/// Normalises rows of x: all of them in order, or those that ids name.
LayerNormResult forward(const Tensor& x_in, const std::optional<Tensor>& ids, const std::optional<Tensor>& residual_in,
                        const std::optional<Tensor>& weight_in, const std::optional<Tensor>& bias_in, double eps) {
  const OnDeviceOf device(x_in);
  const Tensor x = with_contiguous_rows(x_in);
  const auto dense = [](const auto& tensor, auto make) { return tensor ? std::optional(make(*tensor)) : std::nullopt; };
  const auto residual = dense(residual_in, with_contiguous_rows);
  const Tensor& stream = residual ? *residual : x;
  // One dtype for both: that of the stream only where both have it.
  const bool wide = (weight_in && weight_in->scalar_type() == ScalarType::Float) ||
                    (bias_in && bias_in->scalar_type() == ScalarType::Float);
  const ScalarType affine = wide ? ScalarType::Float : stream.scalar_type();
  const auto parameter = [&](const Tensor& tensor) { return as_contiguous(as_dtype(tensor, affine)); };
  const auto weight = dense(weight_in, parameter), bias = dense(bias_in, parameter);
  const int64_t rows = ids ? ids->size(0) : x.size(0), C = x.size(1);
  check_width(C);

  const Tensor y = new_tensor(x, {rows, C}, stream.scalar_type());
  const Tensor sum = residual ? new_tensor(x, {rows, C}, stream.scalar_type()) : new_tensor(x, {0}, x.scalar_type());
  const Tensor mean = new_tensor(x, {rows}, ScalarType::Float), rstd = new_tensor(x, {rows}, ScalarType::Float);

  const int warps_per_row = static_cast<int>(ceil_div(C, kColumns));
  const int warps = warps_per_row > 1 ? warps_per_row : kForwardWarps;
  with_type(x, [&](auto x_type) {
    using X = typename decltype(x_type)::type;
    ForwardArgs<X> args = {};
    args.x = data<X>(x);
    args.x_stride = x.stride(0);
    args.ids = optional_data<void>(ids);
    args.wide_ids = ids && ids->scalar_type() == ScalarType::Long;
    args.x_rows = x.size(0);
    args.residual = optional_data<void>(residual);
    args.residual_stride = residual ? residual->stride(0) : 0;
    args.weight = optional_data<void>(weight);
    args.bias = optional_data<void>(bias);
    args.sum = mutable_data<void>(sum);
    args.y = mutable_data<void>(y);
    args.mean = mutable_data<float>(mean);
    args.rstd = mutable_data<float>(rstd);
    args.rows = rows;
    args.C = static_cast<int>(C);
    args.eps = static_cast<float>(eps);

    const auto run = [&](auto stream_type, auto affine_type) {
      using S = typename decltype(stream_type)::type;
      using W = typename decltype(affine_type)::type;
      const auto start = [&](auto* kernel) {
        launch(kernel, grid_of(ceil_div(rows, warps / warps_per_row)), dim3(warps * kWarp), kTeamBytes, device.stream(),
               args, warps_per_row);
      };
      // A pack is 16 bytes of x; the others, whose elements may be wider, come in several loads.
      const bool vector = C % kPerPack<X> == 0 && packs<X>(x) && packs<S>(residual) && packs<S>(y) &&
                          packs<W>(weight) && packs<W>(bias);
      if (vector)
        start(layer_norm_forward_kernel<X, S, W, kPerPack<X>>);
      else
        start(layer_norm_forward_kernel<X, S, W, 1>);
    };
    if (stream.scalar_type() != x.scalar_type())
      run(Type<float>(), Type<float>());
    else if (wide)
      run(x_type, Type<float>());
    else
      run(x_type, x_type);
  });
  return {y, sum, mean, rstd};
}

}  // namespace

LayerNormResult layer_norm_forward(const Tensor& x, const std::optional<Tensor>& residual,
                                   const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps) {
  check_layer_norm(x, residual, weight, bias);
  return forward(x, std::nullopt, residual, weight, bias, eps);
}

namespace {

std::tuple<Tensor, Tensor, Tensor> layer_norm_embed_forward(const Tensor& ids, const Tensor& table,
                                                            const std::optional<Tensor>& weight,
                                                            const std::optional<Tensor>& bias, double eps) {
  check_layer_norm_embed(ids, table, weight, bias);
  auto [y, sum, mean, rstd] = forward(table, as_contiguous(ids), std::nullopt, weight, bias, eps);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& dy_in, const std::optional<Tensor>& dsum_in,
                                                       const Tensor& x_in, const std::optional<Tensor>& weight_in,
                                                       bool has_bias, const Tensor& mean_in, const Tensor& rstd_in) {
  check_layer_norm_backward(dy_in, dsum_in, x_in, weight_in, mean_in, rstd_in);
  const OnDeviceOf device(x_in);
  const Tensor x = with_contiguous_rows(x_in), dy = with_contiguous_rows(dy_in);
  const Tensor mean = as_contiguous(mean_in), rstd = as_contiguous(rstd_in);
  std::optional<Tensor> dsum, weight;
  if (dsum_in) dsum = with_contiguous_rows(*dsum_in);
  if (weight_in) weight = as_contiguous(*weight_in);
  const int64_t rows = x.size(0), C = x.size(1);
  check_width(C);

  const int warps_per_row = static_cast<int>(ceil_div(C, kColumns));
  const int warps = warps_per_row > 1 ? warps_per_row : kBackwardWarps;
  const int64_t partials = std::min<int64_t>(kPartials, ceil_div(rows, warps / warps_per_row));
  const Tensor dx = new_tensor(x, {rows, C}, x.scalar_type());
  const auto sums = [&](bool wanted, int64_t count) {
    return new_tensor(x, {wanted ? count * C : 0}, ScalarType::Float);
  };
  const Tensor dweight = sums(weight.has_value(), 1), dweight_partial = sums(weight.has_value(), partials);
  const Tensor dbias = sums(has_bias, 1), dbias_partial = sums(has_bias, partials);

  with_type(x, [&](auto x_type) {
    using T = typename decltype(x_type)::type;
    BackwardArgs<T> args = {};
    args.dy = data<T>(dy);
    args.dsum = optional_data<T>(dsum);
    args.x = data<T>(x);
    args.dy_stride = dy.stride(0);
    args.dsum_stride = dsum ? dsum->stride(0) : 0;
    args.x_stride = x.stride(0);
    args.weight = optional_data<void>(weight);
    args.mean = data<float>(mean);
    args.rstd = data<float>(rstd);
    args.dx = mutable_data<T>(dx);
    args.dweight = weight ? mutable_data<float>(dweight_partial) : nullptr;
    args.dbias = has_bias ? mutable_data<float>(dbias_partial) : nullptr;
    args.rows = rows;
    args.C = static_cast<int>(C);

    const auto run = [&](auto affine_type) {
      using W = typename decltype(affine_type)::type;
      const bool vector = packs<T>(x) && packs<T>(dy) && packs<T>(dsum) && packs<T>(dx) && packs<W>(weight);
      with_bool(vector, [&](auto is_vector) {
        with_bool(has_bias, [&](auto bias) {
          constexpr int kPack = is_vector ? kPerPack<T> : 1;
          launch(layer_norm_backward_kernel<T, W, kPack, bias>, grid_of(partials), dim3(warps * kWarp),
                 kTeamBytes + C * sizeof(float), device.stream(), args, warps_per_row);
        });
      });
    };
    if (weight && weight->scalar_type() != x.scalar_type())
      run(Type<float>());
    else
      run(x_type);
  });

  const auto reduce = [&](const Tensor& partial, const Tensor& total) {
    if (total.numel() == 0) return;
    launch(layer_norm_reduce_kernel, grid_of(ceil_div(C, kWarp)), dim3(kReduceWarps * kWarp),
           kReduceWarps * kWarp * sizeof(float), device.stream(), data<float>(partial), partials, C,
           mutable_data<float>(total));
  };
  reduce(dweight_partial, dweight);
  reduce(dbias_partial, dbias);
  return {dx, dweight, dbias};
}

}  // namespace

}  // namespace modernbert_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, MODERNBERT_FAST_DEVICE, m) {
  using namespace modernbert_fast::cuda;
  m.impl("layer_norm_forward", TORCH_BOX(&layer_norm_forward));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
  m.impl("layer_norm_embed_forward", TORCH_BOX(&layer_norm_embed_forward));
}
