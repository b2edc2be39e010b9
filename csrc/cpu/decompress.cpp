// Compressed vectors: allocation and threads. The loop is in decompress.inl.h.
#include "decompress.h"

#include <torch/csrc/stable/library.h>

#include "binding.h"
#include "compressed.h"
#include "isa/isa.h"

namespace modernbert_fast::cpu {

namespace {

Tensor decompress_forward(const Tensor& codes, const Tensor& nearest, const Tensor& centroids, const Tensor& levels) {
  const Compressed vectors(codes, nearest, centroids, levels);
  const index_t D = vectors.args().D;
  Tensor y = new_tensor({vectors.size(), D}, ScalarType::Char);
  int8_t* const rows = static_cast<int8_t*>(y.mutable_data_ptr());
  Decompress* const loop = loops().decompress;
  parallel_rows(vectors.size(), D,
                [&](index_t begin, index_t end) { loop(vectors.args(), begin, end, rows + begin * D); });
  return y;
}

}  // namespace

}  // namespace modernbert_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, CPU, m) {
  using namespace modernbert_fast::cpu;
  m.impl("decompress_forward", TORCH_BOX(&decompress_forward));
}
