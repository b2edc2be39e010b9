// Late interaction: checks, allocation, the split among threads. The loops are in maxsim.inl.h.
#include "maxsim.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "binding.h"
#include "compressed.h"
#include "isa/isa.h"

namespace modernbert_fast::cpu {

namespace {

constexpr index_t kGrain = 1 << 20;  // multiplications that are worth a thread

/// Whether no element of a token stands out among the others: int8 documents may then meet it rounded at 2^-24 of its
/// largest one. Where a document has nothing but zeros there, that is more than fp32 rounds. Others than the median may
/// stand out with it, so it is the median that says how large the others are.
bool is_even(const float* token, index_t D) {
  std::vector<float> magnitudes(D);
  for (index_t k = 0; k < D; ++k) magnitudes[k] = std::isnan(token[k]) ? 0 : std::fabs(token[k]);
  const auto middle = magnitudes.begin() + D / 2;
  std::nth_element(magnitudes.begin(), middle, magnitudes.end());
  return D == 0 || *std::max_element(middle, magnitudes.end()) <= 10 * *middle;
}

/// The arguments that forward and backward share, checked.
class Inputs {
 public:
  Inputs(const Tensor& q, const Tensor& d, const Tensor& cu_queries, const Tensor& cu_documents, bool pairwise,
         bool may_be_bytes = false)
      : Inputs(q, checked_tokens(d, "d", may_be_bytes), d.size(0), cu_queries, cu_documents, pairwise) {
    check_shape(d, "d", {d.size(0), q.size(1)}, "(Td, D)");
    check_same_device(d, "d", q, "q");
    args_.dtype = loop_dtype(d_);
    args_.bytes = d_.scalar_type() == ScalarType::Char;
    args_.d = d_.const_data_ptr();
    args_.d_stride = d_.stride(0);
    args_.compressed = nullptr;
  }
  /// `d` outlives this.
  Inputs(const Tensor& q, const Compressed& d, const Tensor& cu_queries, const Tensor& cu_documents)
      : Inputs(q, q, d.size(), cu_queries, cu_documents, false) {
    check(d.args().D == q.size(1), "compressed vectors of ", d.args().D, " elements do not fit q = ", q);
    args_.dtype = DType::kFloat;
    args_.bytes = true;
    args_.d = nullptr;
    args_.d_stride = d.args().D;
    args_.compressed = &d.args();
  }

  const MaxSimArgs& args() const { return args_; }
  /// A result for each of `rows`, queries or their tokens, and each document that they meet.
  Tensor new_results(index_t rows, ScalarType dtype) const {
    return args_.pairwise ? new_tensor({rows}, dtype) : new_tensor({rows, args_.documents}, dtype);
  }
  void check_results(const Tensor& x, const char* name, index_t rows, const char* shape) const {
    args_.pairwise ? check_shape(x, name, {rows}, shape) : check_shape(x, name, {rows, args_.documents}, shape);
  }
  /// Whether every token of a query is even; true where it does not matter.
  bool is_even_query(index_t query) const {
    for (index_t t = args_.cu_queries[query]; args_.bytes && t < args_.cu_queries[query + 1]; ++t)
      if (!is_even(args_.q + t * args_.q_stride, args_.D)) return false;
    return true;
  }
  index_t query_tokens(index_t first, index_t last) const { return args_.cu_queries[last] - args_.cu_queries[first]; }
  index_t document_tokens(index_t i) const { return args_.cu_documents[i + 1] - args_.cu_documents[i]; }

 private:
  Inputs(const Tensor& q, const Tensor& d, index_t Td, const Tensor& cu_queries, const Tensor& cu_documents,
         bool pairwise)
      : q_(checked_tokens(q, "q")),
        d_(d),
        cu_queries_(checked_bounds(cu_queries, q.size(0))),
        cu_documents_(checked_bounds(cu_documents, Td)) {
    check_same_device(cu_queries, "cu_queries", q, "q");
    check_same_device(cu_documents, "cu_documents", q, "q");
    if (pairwise) check_shape(cu_documents, "cu_documents", {cu_queries.size(0)}, "(B + 1,) as cu_queries");
    q_ = as_dtype(q_, ScalarType::Float);  // the small side: the loops convert documents alone
    args_.q = static_cast<const float*>(q_.const_data_ptr());
    args_.q_stride = q_.stride(0);
    args_.cu_queries = static_cast<const int32_t*>(cu_queries_.const_data_ptr());
    args_.cu_documents = static_cast<const int32_t*>(cu_documents_.const_data_ptr());
    args_.queries = cu_queries_.size(0) - 1;
    args_.documents = cu_documents_.size(0) - 1;
    args_.D = q_.size(1);
    args_.pairwise = pairwise;
  }
  static Tensor checked_tokens(const Tensor& x, const char* name, bool may_be_bytes = false) {
    check_dim(x, name, 2);
    if (!may_be_bytes || x.scalar_type() != ScalarType::Char)
      check_dtype(x, name, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
    return with_contiguous_rows(x);
  }
  Tensor q_, d_, cu_queries_, cu_documents_;
  MaxSimArgs args_;
};

/// scores, and argmax if somebody asks for winners.
std::tuple<Tensor, Tensor> scored(const Inputs& inputs, bool winners) {
  const MaxSimArgs& in = inputs.args();
  const bool pairwise = in.pairwise;
  Tensor scores = inputs.new_results(in.queries, ScalarType::Float);
  Tensor argmax = winners ? inputs.new_results(inputs.query_tokens(0, in.queries), ScalarType::Int)
                          : new_tensor({0}, ScalarType::Int);

  const index_t width = loops().tile_columns;
  std::vector<QueryGroup> groups;
  index_t columns = 0, widest = 0;
  for (index_t first = 0, last; first < in.queries; first = last) {
    last = first + 1;
    const bool even = inputs.is_even_query(first);
    while (!pairwise && last < in.queries && inputs.query_tokens(first, last + 1) <= kQueryGroup &&
           inputs.is_even_query(last) == even)
      ++last;
    groups.push_back({first, last, columns, even});
    const index_t wide = (inputs.query_tokens(first, last) + width - 1) / width * width;
    columns += wide;
    widest = std::max(widest, wide);
  }
  const index_t G = static_cast<index_t>(groups.size());
  const Scratch panels(columns * maxsim_panel_rows(in));
  const MaxSimForwardArgs args{in,
                               groups.data(),
                               G,
                               panels.get(),
                               static_cast<float*>(scores.mutable_data_ptr()),
                               winners ? static_cast<int32_t*>(argmax.mutable_data_ptr()) : nullptr};
  parallel_rows(G, columns * in.D / std::max<index_t>(G, 1),
                [&](index_t begin, index_t end) { loops().maxsim_pack(args, begin, end); });
  Costs costs;
  for (index_t unit = 0; unit < maxsim_units(args); ++unit) {
    const QueryGroup& group = groups[maxsim_group(args, unit)];
    // One more, since an empty document has a score too.
    costs.add(
        inputs.query_tokens(group.first, group.last) * inputs.document_tokens(maxsim_document(args, unit)) * in.D + 1);
  }
  costs.parallel(kGrain, [&](index_t begin, index_t end) {
    std::vector<int32_t> rows(widest + 1);
    loops().maxsim_forward(args, begin, end, Scratch(loops().maxsim_scratch(in, widest)).get(), rows.data());
  });
  return {scores, argmax};
}

std::tuple<Tensor, Tensor> maxsim_forward(const Tensor& q, const Tensor& d, const Tensor& cu_queries,
                                          const Tensor& cu_documents, bool pairwise, bool winners) {
  return scored(Inputs(q, d, cu_queries, cu_documents, pairwise, true), winners);
}

Tensor maxsim_forward_compressed(const Tensor& q, const Tensor& codes, const Tensor& nearest, const Tensor& centroids,
                                 const Tensor& levels, const Tensor& cu_queries, const Tensor& cu_documents) {
  check_same_device(codes, "codes", q, "q");
  const Compressed d(codes, nearest, centroids, levels);
  return std::get<0>(scored(Inputs(q, d, cu_queries, cu_documents), false));
}

std::tuple<Tensor, Tensor> maxsim_backward(const Tensor& dscores_in, const Tensor& q, const Tensor& d,
                                           const Tensor& cu_queries, const Tensor& cu_documents,
                                           const Tensor& argmax_in, bool pairwise) {
  const Inputs inputs(q, d, cu_queries, cu_documents, pairwise);
  const MaxSimArgs& in = inputs.args();
  const index_t Tq = q.size(0), Td = d.size(0);
  inputs.check_results(dscores_in, "dscores", in.queries, "(Bq, Bd), or (B,) pairwise");
  inputs.check_results(argmax_in, "argmax", Tq, "(Tq, Bd), or (Tq,) pairwise");
  check_dtype(argmax_in, "argmax", {ScalarType::Int});
  check_floating(dscores_in, "dscores");
  check_same_device(dscores_in, "dscores", q, "q");
  check_same_device(argmax_in, "argmax", q, "q");
  const Tensor dscores = as_contiguous(as_dtype(dscores_in, ScalarType::Float)), argmax = as_contiguous(argmax_in);
  Tensor dq = new_tensor({Tq, in.D}, ScalarType::Float);
  Tensor dd = new_tensor({Td, in.D}, d.scalar_type());

  std::vector<int32_t> query_of(Tq);
  for (index_t query = 0; query < in.queries; ++query)
    std::fill(query_of.begin() + in.cu_queries[query], query_of.begin() + in.cu_queries[query + 1],
              static_cast<int32_t>(query));
  const MaxSimBackwardArgs args{in,
                                static_cast<const float*>(dscores.const_data_ptr()),
                                static_cast<const int32_t*>(argmax.const_data_ptr()),
                                query_of.data(),
                                static_cast<float*>(dq.mutable_data_ptr()),
                                dd.mutable_data_ptr()};
  parallel_rows(Tq, maxsim_columns(in) * in.D,
                [&](index_t begin, index_t end) { loops().maxsim_query_gradient(args, begin, end); });

  Costs costs;
  index_t longest = 0;
  for (index_t i = 0; i < in.documents; ++i) {
    longest = std::max(longest, inputs.document_tokens(i));
    costs.add((inputs.document_tokens(i) + (pairwise ? inputs.query_tokens(i, i + 1) : Tq)) * in.D);
  }
  costs.parallel(kGrain, [&](index_t begin, index_t end) {
    std::vector<int32_t> chains(longest + Tq);
    loops().maxsim_document_gradient(args, begin, end, Scratch(in.D).get(), chains.data());
  });
  return {as_dtype(dq, q.scalar_type()), dd};
}

}  // namespace

}  // namespace modernbert_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, CPU, m) {
  using namespace modernbert_fast::cpu;
  m.impl("maxsim_forward", TORCH_BOX(&maxsim_forward));
  m.impl("maxsim_forward_compressed", TORCH_BOX(&maxsim_forward_compressed));
  m.impl("maxsim_backward", TORCH_BOX(&maxsim_backward));
}
