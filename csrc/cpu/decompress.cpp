// Compressed vectors: checks, allocation, threads. The loop is in decompress.inl.h.
#include "decompress.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "binding.h"
#include "isa/isa.h"

namespace modernbert_fast::cpu {

namespace {

Tensor decompress_forward(const Tensor& codes_in, const Tensor& nearest_in, const Tensor& centroids_in,
                          const Tensor& levels_in) {
  check_dim(centroids_in, "centroids", 2);
  check_dim(nearest_in, "nearest", 1);
  const index_t T = nearest_in.size(0), K = centroids_in.size(0), D = centroids_in.size(1);
  check_shape(codes_in, "codes", {T, (D + 1) / 2}, "(T, half of D)");
  check_shape(levels_in, "levels", {K, kLevels}, "(K, 16)");
  check_dtype(codes_in, "codes", {ScalarType::Byte});
  check_dtype(nearest_in, "nearest", {ScalarType::Short});
  check_dtype(centroids_in, "centroids", {ScalarType::Char});
  check_dtype(levels_in, "levels", {ScalarType::Char});
  check_same_device(nearest_in, "nearest", codes_in, "codes");
  check_same_device(centroids_in, "centroids", codes_in, "codes");
  check_same_device(levels_in, "levels", codes_in, "codes");
  const Tensor codes = with_contiguous_rows(codes_in), nearest = as_contiguous(nearest_in),
               centroids = as_contiguous(centroids_in), levels = as_contiguous(levels_in);
  Tensor y = new_tensor({T, D}, ScalarType::Char);

  DecompressArgs args;
  args.codes = static_cast<const uint8_t*>(codes.const_data_ptr());
  args.codes_stride = codes.stride(0);
  args.nearest = static_cast<const int16_t*>(nearest.const_data_ptr());
  args.centroids = static_cast<const int8_t*>(centroids.const_data_ptr());
  args.levels = static_cast<const int8_t*>(levels.const_data_ptr());
  args.y = static_cast<int8_t*>(y.mutable_data_ptr());
  args.D = D;

  int16_t smallest = 0, largest = -1;
  for (index_t t = 0; t < T; ++t) {
    smallest = std::min(smallest, args.nearest[t]);
    largest = std::max(largest, args.nearest[t]);
  }
  check_index(smallest >= 0 && largest < K, "nearest holds ", smallest < 0 ? smallest : largest, ", outside [0, ", K,
              ")");
  Decompress* const loop = loops().decompress;
  parallel_rows(T, D, [&](index_t begin, index_t end) { loop(args, begin, end); });
  return y;
}

}  // namespace

}  // namespace modernbert_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, CPU, m) {
  using namespace modernbert_fast::cpu;
  m.impl("decompress_forward", TORCH_BOX(&decompress_forward));
}
