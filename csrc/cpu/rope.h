// What the rope loop takes. Strides are in elements; the head dimension is contiguous.
#pragma once

#include "dtype.h"

namespace modernbert_fast::cpu {

struct RopeArgs {
  DType dtype;      // of qkv and y
  const void* qkv;  // (T, 3, H, D)
  index_t stride_t;
  index_t stride_part;
  index_t stride_h;
  const int64_t* positions;  // (T,)
  const float* cos;          // (P, D / 2)
  const float* sin;          // (P, D / 2)
  void* y;                   // (T, 3, H, D)
  index_t H;
  index_t D;
};

/// Tokens [begin, end).
using Rope = void(const RopeArgs&, index_t begin, index_t end);

}  // namespace modernbert_fast::cpu
