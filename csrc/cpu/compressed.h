// Compressed vectors: from torch's tensors, after checks, to what the loops take.
#pragma once

#include <algorithm>

#include "../checks.h"
#include "../tensors.h"
#include "decompress.h"

namespace modernbert_fast::cpu {

class Compressed {
 public:
  Compressed(const Tensor& codes, const Tensor& nearest, const Tensor& centroids, const Tensor& levels)
      : codes_(checked(codes, "codes", 2, ScalarType::Byte)),
        nearest_(checked(nearest, "nearest", 1, ScalarType::Short)),
        centroids_(checked(centroids, "centroids", 2, ScalarType::Char)),
        levels_(checked(levels, "levels", 2, ScalarType::Char)) {
    const index_t K = centroids.size(0), D = centroids.size(1);
    check_shape(codes, "codes", {size(), (D + 1) / 2}, "(T, half of D)");
    check_shape(levels, "levels", {K, kLevels}, "(K, 16)");
    check_same_device(nearest, "nearest", codes, "codes");
    check_same_device(centroids, "centroids", codes, "codes");
    check_same_device(levels, "levels", codes, "codes");
    args_ = {
        static_cast<const uint8_t*>(codes_.const_data_ptr()),   codes_.stride(0),
        static_cast<const int16_t*>(nearest_.const_data_ptr()), static_cast<const int8_t*>(centroids_.const_data_ptr()),
        static_cast<const int8_t*>(levels_.const_data_ptr()),   D};
    int16_t smallest = 0, largest = -1;
    for (index_t t = 0; t < size(); ++t) {
      smallest = std::min(smallest, args_.nearest[t]);
      largest = std::max(largest, args_.nearest[t]);
    }
    check_index(smallest >= 0 && largest < K, "nearest holds ", smallest < 0 ? smallest : largest, ", outside [0, ", K,
                ")");
  }

  index_t size() const { return nearest_.size(0); }
  const CompressedArgs& args() const { return args_; }

 private:
  static Tensor checked(const Tensor& x, const char* name, int64_t dim, ScalarType dtype) {
    check_dim(x, name, dim);
    check_dtype(x, name, {dtype});
    return dtype == ScalarType::Byte ? with_contiguous_rows(x) : as_contiguous(x);
  }
  Tensor codes_, nearest_, centroids_, levels_;
  CompressedArgs args_;
};

}  // namespace modernbert_fast::cpu
