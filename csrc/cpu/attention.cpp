// Attention: checks, allocation, the split among threads. The loops are in attention.inl.h.
#include "attention.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "binding.h"
#include "bindings.h"
#include "isa/isa.h"

namespace modernbert_fast::cpu {

namespace {

constexpr index_t kGrain = 16384;  // pairs of query and key that are worth a thread

constexpr index_t kPackedFloats = 4 << 20;  // of packed keys and values at a time: 16 MiB, half a last-level cache

/// The arguments that forward and backward share, checked.
class Inputs {
 public:
  Inputs(const Tensor& qkv, const Tensor& cu_seqlens, const std::optional<Tensor>& positions,
         const std::optional<Tensor>& cos, const std::optional<Tensor>& sin, const std::optional<Tensor>& columns,
         const std::optional<Tensor>& attended, const Tensor& tiles, int64_t max_seqlen, int64_t window, double scale)
      : qkv_(with_contiguous_heads(qkv)), bounds_(checked_bounds(cu_seqlens, qkv.size(0))) {
    check_attention(qkv, cu_seqlens, positions, cos, sin, columns, attended, tiles, window);
    for (index_t text = 0; text < texts(); ++text)
      check(start(text + 1) - start(text) <= max_seqlen, "max_seqlen is ", max_seqlen, ", but a text has ",
            start(text + 1) - start(text), " tokens");
    args_.dtype = loop_dtype(qkv_);
    args_.qkv = qkv_.const_data_ptr();
    args_.stride_t = qkv_.stride(0);
    args_.stride_part = qkv_.stride(1);
    args_.stride_h = qkv_.stride(2);
    args_.T = qkv_.size(0);
    args_.H = qkv_.size(2);
    args_.D = qkv_.size(3);
    args_.window = window;
    args_.scale = static_cast<float>(scale);
    if (positions) tables_.emplace(qkv_, *positions, *cos, *sin);
    args_.rotary = tables_ ? tables_->get() : Rotary{};
    args_.columns = nullptr;
    args_.attended = nullptr;
    if (columns) {
      columns_ = as_contiguous(*columns);
      args_.columns = static_cast<const int32_t*>(columns_->const_data_ptr());
    }
    if (!attended) return;
    const Tensor dense = as_contiguous(*attended);
    const int8_t* const given = static_cast<const int8_t*>(dense.const_data_ptr());
    attended_.assign(given, given + args_.T);
    attended_.resize(args_.T + loops().tile_columns);  // whole vectors are read
    args_.attended = attended_.data();
  }

  const AttentionArgs& args() const { return args_; }
  index_t texts() const { return bounds_.size(0) - 1; }
  index_t start(index_t text) const { return static_cast<const int32_t*>(bounds_.const_data_ptr())[text]; }
  /// Keys that a query of a text of this length meets, at most.
  index_t reach(index_t length) const {
    return args_.window < 0 ? length : std::min(length, kQueryBlock + 2 * std::min(args_.window, length));
  }

 private:
  static Tensor with_contiguous_heads(const Tensor& qkv) {
    check_heads(qkv);
    check(qkv.size(3) <= kLargestHead, "heads of more than ", kLargestHead, " elements are not served, got ", qkv);
    return with_contiguous_rows(qkv);
  }
  Tensor qkv_, bounds_;
  std::optional<Tensor> columns_;
  std::vector<int8_t> attended_;
  std::optional<RotaryTables> tables_;
  AttentionArgs args_;
};

}  // namespace

std::tuple<Tensor, Tensor> attention_forward(const Tensor& qkv, const Tensor& cu_seqlens,
                                             const std::optional<Tensor>& positions, const std::optional<Tensor>& cos,
                                             const std::optional<Tensor>& sin, const std::optional<Tensor>& columns,
                                             const std::optional<Tensor>& attended, const Tensor& tiles,
                                             int64_t max_seqlen, int64_t window, double scale) {
  const Inputs inputs(qkv, cu_seqlens, positions, cos, sin, columns, attended, tiles, max_seqlen, window, scale);
  const AttentionArgs& in = inputs.args();
  Tensor o = new_tensor({in.T, in.H, in.D}, qkv.scalar_type());
  Tensor lse = new_tensor({in.H, in.T}, ScalarType::Float);

  const Loops& loop = loops();
  const index_t width = loop.tile_columns;
  std::vector<KeyPanel> panels;
  std::vector<index_t> first_panel;  // of each text
  for (index_t text = 0; text < inputs.texts(); ++text) {
    const index_t start = inputs.start(text), end = inputs.start(text + 1);
    first_panel.push_back(static_cast<index_t>(panels.size()));
    for (index_t key = start; key < end; key += width) panels.push_back({key, std::min(width, end - key)});
  }

  // A few heads at a time, so that their packed keys and values take little memory and stay near the cores.
  const index_t P = static_cast<index_t>(panels.size()), D = in.D, padded = (D + width - 1) / width * width;
  const index_t key_floats = P * D * width, value_floats = P * padded * width;
  const index_t group = std::clamp<index_t>(kPackedFloats / std::max<index_t>(key_floats + value_floats, 1), 1,
                                            std::max<index_t>(in.H, 1));
  const Scratch keys(group * key_floats), values(group * value_floats);
  const AttentionScratch scratch = loop.attention_scratch(D, 0);
  for (index_t first_head = 0; first_head < in.H; first_head += group) {
    const index_t heads = std::min(group, in.H - first_head);
    std::vector<QueryBlock> blocks;
    Costs costs;
    for (index_t text = 0; text < inputs.texts(); ++text) {
      const index_t start = inputs.start(text), end = inputs.start(text + 1), reach = inputs.reach(end - start);
      for (index_t head = first_head; head < first_head + heads; ++head)
        for (index_t first = start; first < end; first += kQueryBlock) {
          blocks.push_back({start, end, first_panel[text], head, first});
          costs.add(std::min(kQueryBlock, end - first) * reach);
        }
    }
    const AttentionForwardArgs args{in,
                                    first_head,
                                    heads,
                                    P,
                                    keys.get(),
                                    values.get(),
                                    o.mutable_data_ptr(),
                                    static_cast<float*>(lse.mutable_data_ptr())};
    parallel_rows(P, 2 * heads * D * width, [&](index_t begin, index_t end) {
      loop.attention_pack(args, panels.data(), begin, end, Scratch(scratch.pack).get());
    });
    costs.parallel(kGrain, [&](index_t begin, index_t end) {
      loop.attention_forward(args, blocks.data(), begin, end, Scratch(scratch.forward).get());
    });
  }
  return {o, lse};
}

namespace {

Tensor attention_backward(const Tensor& d_o_in, const Tensor& qkv, const Tensor& o, const Tensor& lse,
                          const Tensor& cu_seqlens, const std::optional<Tensor>& positions,
                          const std::optional<Tensor>& cos, const std::optional<Tensor>& sin,
                          const std::optional<Tensor>& columns, const std::optional<Tensor>& attended,
                          const Tensor& tiles, int64_t max_seqlen, int64_t window, double scale) {
  const Inputs inputs(qkv, cu_seqlens, positions, cos, sin, columns, attended, tiles, max_seqlen, window, scale);
  const AttentionArgs& in = inputs.args();
  check_attention_backward(d_o_in, qkv, o, lse);
  const Tensor d_o = with_contiguous_rows(as_dtype(d_o_in, qkv.scalar_type()));
  Tensor dqkv = new_tensor({in.T, 3, in.H, in.D}, qkv.scalar_type());

  std::vector<HeadOfText> pairs;
  Costs costs;
  index_t longest = 0;
  for (index_t text = 0; text < inputs.texts(); ++text) {
    const index_t start = inputs.start(text), end = inputs.start(text + 1);
    if (start == end) continue;
    longest = std::max(longest, end - start);
    for (index_t head = 0; head < in.H; ++head) {
      pairs.push_back({start, end, head});
      costs.add((end - start) * inputs.reach(end - start));
    }
  }
  const Loops& loop = loops();
  const index_t scratch = loop.attention_scratch(in.D, longest).backward;
  const AttentionBackwardArgs args{in, d_o.const_data_ptr(), d_o.stride(0), d_o.stride(1), dqkv.mutable_data_ptr()};
  costs.parallel(kGrain, [&](index_t begin, index_t end) {
    loop.attention_backward(args, pairs.data(), begin, end, Scratch(scratch).get());
  });
  return dqkv;
}

}  // namespace

}  // namespace modernbert_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, CPU, m) {
  using namespace modernbert_fast::cpu;
  m.impl("attention_forward", TORCH_BOX(&attention_forward));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}
