// What the pooling loops take. Strides are in elements; the last dimension is contiguous.
#pragma once

#include "dtype.h"

namespace modernbert_fast::cpu {

struct PoolingForwardArgs {
  DType dtype;    // of x and y
  const void* x;  // (T, C)
  index_t x_stride;
  const int32_t* cu_seqlens;  // (B + 1,)
  void* y;                    // (B, C)
  float* norm;                // (B,)
  index_t C;
  bool mean;  // of all rows of a text; else its first row
  bool normalize;
};

struct PoolingBackwardArgs {
  DType dtype;     // of dy, y and dx
  const void* dy;  // (B, C)
  index_t dy_stride;
  const void* y;  // (B, C)
  index_t y_stride;
  const float* norm;          // (B,)
  const int32_t* cu_seqlens;  // (B + 1,)
  void* dx;                   // (T, C)
  index_t C;
  bool mean;
  bool normalize;
};

/// Floats of scratch that one call of a pooling loop needs. Static: see loops.inl.h.
static inline index_t pooling_scratch(index_t C) { return 2 * ((C + 31) / 16 * 16); }

/// Texts [begin, end).
using PoolingForward = void(const PoolingForwardArgs&, index_t begin, index_t end, float* scratch);
using PoolingBackward = void(const PoolingBackwardArgs&, index_t begin, index_t end, float* scratch);

}  // namespace modernbert_fast::cpu
