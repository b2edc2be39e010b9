// What the rope loop takes. Strides are in elements; the head dimension is contiguous.
#pragma once

#include "dtype.h"

namespace modernbert_fast::cpu {

/// Tables of angles and each token's row in them.
struct Rotary {
  const int64_t* positions;  // (T,)
  const float* cos;          // (P, half)
  const float* sin;          // (P, half)
  index_t half;              // D / 2
};

struct RopeArgs {
  DType dtype;      // of qkv and y
  const void* qkv;  // (T, 3, H, D)
  index_t stride_t;
  index_t stride_part;
  index_t stride_h;
  Rotary rotary;
  void* y;  // (T, 3, H, D)
  index_t H;
  index_t D;
};

/// Tokens [begin, end).
using Rope = void(const RopeArgs&, index_t begin, index_t end);

}  // namespace modernbert_fast::cpu
