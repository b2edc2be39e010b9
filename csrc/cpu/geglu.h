// What the GeGLU loops take. Strides are in elements; the last dimension is contiguous.
#pragma once

#include "dtype.h"

namespace modernbert_fast::cpu {

struct GegluForwardArgs {
  DType dtype;    // of x and y
  const void* x;  // (T, 2 F)
  index_t x_stride;
  void* y;  // (T, F)
  index_t F;
};

struct GegluBackwardArgs {
  DType dtype;     // of dy, x and dx
  const void* dy;  // (T, F)
  index_t dy_stride;
  const void* x;  // (T, 2 F)
  index_t x_stride;
  void* dx;  // (T, 2 F)
  index_t F;
};

/// Rows [begin, end).
using GegluForward = void(const GegluForwardArgs&, index_t begin, index_t end);
using GegluBackward = void(const GegluBackwardArgs&, index_t begin, index_t end);

}  // namespace modernbert_fast::cpu
