// Attention: checks, allocation, the choice of the chip's kernels. Reference: modernbert_fast/reference/attention.py
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <limits>
#include <optional>
#include <tuple>

#include "../../checks/attention.h"
#include "../binding.h"
#include "../bindings.h"
#include "params.h"

namespace modernbert_fast::cuda {

namespace {

/// The chip whose code runs: the device's, or an older one that MODERNBERT_FAST_SM names.
int chip_for(const OnDeviceOf& device) {
  const char* const asked = std::getenv("MODERNBERT_FAST_SM");
  if (asked == nullptr || *asked == '\0') return device.chip();
  const int chip = std::atoi(asked);
  check(chip >= 75 && chip <= device.chip(), "MODERNBERT_FAST_SM=", asked, " is no chip from 75 to ", device.chip());
  return chip == 90 && !device.has_wgmma() ? 80 : chip;  // what only 9.0 has, no later chip runs
}

/// x (T, *, H, D) with rows as kernels read them: dense, apart from each other, and each aligned to 16 bytes.
Tensor with_aligned_rows(const Tensor& x) {
  bool aligned = x.size(x.dim() - 1) <= 1 || x.stride(x.dim() - 1) == 1;
  for (int64_t axis = 0; axis + 1 < x.dim(); ++axis)
    aligned = aligned &&
              (x.size(axis) <= 1 || (x.stride(axis) != 0 && x.stride(axis) * x.element_size() % kPlaneAlignment == 0));
  const Tensor dense = aligned ? x : as_contiguous(x);
  const bool starts = reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % kPlaneAlignment == 0;
  return starts ? dense : torch::stable::clone(as_contiguous(dense));
}

/// The step of an axis; of an axis with one place, whose step may be anything, that of a dense tensor.
index_t step(const Tensor& x, int64_t axis) {
  if (x.size(axis) > 1) return x.stride(axis);
  index_t dense = 1;
  for (int64_t inner = axis + 1; inner < x.dim(); ++inner) dense *= x.size(inner);
  return dense;
}

/// x (T, H, D), or one of three parts of x (T, 3, H, D). Elements are of 2 bytes.
Plane plane_of(const Tensor& x, int64_t part = 0) {
  return {data<uint16_t>(x) + part * x.stride(1), step(x, 0), step(x, x.dim() - 2)};
}
MutablePlane mutable_plane_of(const Tensor& x, int64_t part = 0) {
  return {mutable_data<uint16_t>(x) + part * x.stride(1), step(x, 0), step(x, x.dim() - 2)};
}

/// The arguments that forward and backward share, checked, and where their copies live.
class Inputs {
 public:
  Inputs(const OnDeviceOf& device, const Tensor& qkv, const Tensor& cu_seqlens, const std::optional<Tensor>& positions,
         const std::optional<Tensor>& cos, const std::optional<Tensor>& sin, const std::optional<Tensor>& columns,
         const std::optional<Tensor>& attended, const Tensor& tiles, int64_t window, double scale)
      : chip_(chip_for(device)), qkv_(checked(qkv, chip_)) {
    check_attention(qkv, cu_seqlens, positions, cos, sin, columns, attended, tiles, window);
    check(!attended, "tokens that are not attended to are not served here");
    check_dim(cu_seqlens, "cu_seqlens", 1);
    check(cu_seqlens.size(0) > 0, "cu_seqlens must be (B + 1,), got ", cu_seqlens);
    check_dtype(cu_seqlens, "cu_seqlens", {ScalarType::Int});
    check_dtype(tiles, "tiles", {ScalarType::Int});
    check_same_device(tiles, "tiles", qkv, "qkv");
    geometry_.tiles = kept<int32_t>(tiles);
    geometry_.entries = tiles.size(0);
    geometry_.cu_seqlens = kept<int32_t>(cu_seqlens);
    geometry_.B = cu_seqlens.size(0) - 1;
    if (positions) {
      geometry_.positions = kept<int32_t>(as_dtype(*positions, ScalarType::Int));
      geometry_.cos = kept<float>(*cos);
      geometry_.sin = kept<float>(*sin);
      geometry_.P = cos->size(0);
    }
    if (columns) geometry_.columns = kept<int32_t>(*columns);
    geometry_.T = qkv.size(0);
    geometry_.H = qkv.size(2);
    geometry_.D = static_cast<int>(qkv.size(3));
    geometry_.window = window;
    geometry_.scale = static_cast<float>(scale);
  }

  const AttentionGeometry& geometry() const { return geometry_; }
  HalfType dtype() const { return qkv_.scalar_type() == ScalarType::Half ? HalfType::kFloat16 : HalfType::kBFloat16; }
  Plane part(int64_t i) const { return plane_of(qkv_, i); }
  /// The chip's own function. wgmma is of 9.0 alone, and written for the heads and layers where it pays.
  template <class Function>
  Function* choose(Function* sm75, Function* sm80, Function* sm90) const {
    if (chip_ < 80) return sm75;
    return chip_ == 90 && geometry_.window < 0 && geometry_.D == kHopperHead ? sm90 : sm80;
  }
  /// Memory for `planes` of q and k where they are turned beforehand.
  Tensor scratch(int64_t planes) const {
    const bool turns = turns_beforehand(geometry_);
    return new_tensor(qkv_, {turns ? planes : 0, geometry_.T, geometry_.H, geometry_.D}, qkv_.scalar_type());
  }

 private:
  static Tensor checked(const Tensor& qkv, int chip) {
    check_heads(qkv);
    constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max() - 1024;  // rows of a tile are counted in int
    const int64_t D = qkv.size(3);
    check(D > 0 && D <= kLargestHead && D % kHeadMultiple == 0, "heads must have a multiple of ", kHeadMultiple,
          " elements, at most ", kLargestHead, ", got ", qkv);
    check(qkv.size(0) <= kMostTokens && qkv.size(2) <= 65535, "too many tokens or heads: ", qkv);
    if (chip < 80)
      check_dtype(qkv, "qkv", {ScalarType::Half});
    else
      check_dtype(qkv, "qkv", {ScalarType::Half, ScalarType::BFloat16});
    return with_aligned_rows(qkv);
  }
  template <class T>
  const T* kept(const Tensor& x) {
    copies_.push_back(with_aligned_rows(as_contiguous(x)));
    return data<T>(copies_.back());
  }
  int chip_;
  Tensor qkv_;
  std::vector<Tensor> copies_;
  AttentionGeometry geometry_ = {};
};

}  // namespace

std::tuple<Tensor, Tensor> attention_forward(const Tensor& qkv, const Tensor& cu_seqlens,
                                             const std::optional<Tensor>& positions, const std::optional<Tensor>& cos,
                                             const std::optional<Tensor>& sin, const std::optional<Tensor>& columns,
                                             const std::optional<Tensor>& attended, const Tensor& tiles,
                                             int64_t /*max_seqlen*/, int64_t window, double scale) {
  const OnDeviceOf device(qkv);
  const Inputs inputs(device, qkv, cu_seqlens, positions, cos, sin, columns, attended, tiles, window, scale);
  const AttentionGeometry& g = inputs.geometry();
  const Tensor o = new_tensor(qkv, {g.T, g.H, g.D}, qkv.scalar_type());
  const Tensor lse = new_tensor(qkv, {g.H, g.T}, ScalarType::Float);
  const Tensor scratch = inputs.scratch(1);
  const AttentionForward args = {g,
                                 inputs.dtype(),
                                 inputs.part(0),
                                 inputs.part(1),
                                 inputs.part(2),
                                 mutable_plane_of(o),
                                 mutable_data<float>(lse),
                                 scratch.mutable_data_ptr()};
  inputs.choose(attention_forward_sm75, attention_forward_sm80, attention_forward_sm90)(args, device.stream());
  return {o, lse};
}

namespace {

Tensor attention_backward(const Tensor& d_o_in, const Tensor& qkv, const Tensor& o_in, const Tensor& lse_in,
                          const Tensor& cu_seqlens, const std::optional<Tensor>& positions,
                          const std::optional<Tensor>& cos, const std::optional<Tensor>& sin,
                          const std::optional<Tensor>& columns, const std::optional<Tensor>& attended,
                          const Tensor& tiles, int64_t /*max_seqlen*/, int64_t window, double scale) {
  const OnDeviceOf device(qkv);
  const Inputs inputs(device, qkv, cu_seqlens, positions, cos, sin, columns, attended, tiles, window, scale);
  const AttentionGeometry& g = inputs.geometry();
  check_attention_backward(d_o_in, qkv, o_in, lse_in);
  check_same_device(o_in, "o", qkv, "qkv");
  check_same_device(lse_in, "lse", qkv, "qkv");
  const Tensor d_o = with_aligned_rows(as_dtype(d_o_in, qkv.scalar_type()));
  const Tensor o = with_aligned_rows(as_dtype(o_in, qkv.scalar_type()));
  const Tensor lse = as_contiguous(as_dtype(lse_in, ScalarType::Float));
  const Tensor dqkv = new_tensor(qkv, {g.T, 3, g.H, g.D}, qkv.scalar_type());
  const Tensor delta = new_tensor(qkv, {g.H, g.T}, ScalarType::Float);
  const Tensor scratch = inputs.scratch(2);
  const AttentionBackward args = {g,
                                  inputs.dtype(),
                                  inputs.part(0),
                                  inputs.part(1),
                                  inputs.part(2),
                                  plane_of(o),
                                  plane_of(d_o),
                                  data<float>(lse),
                                  mutable_plane_of(dqkv, 0),
                                  mutable_plane_of(dqkv, 1),
                                  mutable_plane_of(dqkv, 2),
                                  mutable_data<float>(delta),
                                  scratch.mutable_data_ptr()};
  inputs.choose(attention_backward_sm75, attention_backward_sm80, attention_backward_sm90)(args, device.stream());
  return dqkv;
}

}  // namespace

}  // namespace modernbert_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, MODERNBERT_FAST_DEVICE, m) {
  using namespace modernbert_fast::cuda;
  m.impl("attention_forward", TORCH_BOX(&attention_forward));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}
