// What the layer norm loops take. Strides are in elements; the last dimension is contiguous.
#pragma once

#include "dtype.h"

namespace modernbert_fast::cpu {

struct LayerNormForwardArgs {
  DType x_dtype;
  DType y_dtype;  // of y, and of residual and sum if there are any
  const void* x;  // (rows, C)
  index_t x_stride;
  const int64_t* ids;    // (T,) row t reads x[ids[t]]; null: x[t]
  const void* residual;  // (T, C) or null
  index_t residual_stride;
  const float* weight;  // (C,)
  const float* bias;    // (C,)
  void* sum;            // (T, C), written if there is a residual
  void* y;              // (T, C)
  float* mean;          // (T,)
  float* rstd;          // (T,)
  index_t C;
  float eps;
  bool stream;  // y is larger than the caches
};

struct LayerNormBackwardArgs {
  DType dtype;     // of dy, dsum, x and dx
  const void* dy;  // (T, C)
  index_t dy_stride;
  const void* dsum;  // (T, C) or null
  index_t dsum_stride;
  const void* x;  // (T, C)
  index_t x_stride;
  const float* weight;  // (C,)
  const float* mean;    // (T,)
  const float* rstd;    // (T,)
  void* dx;             // (T, C)
  float* dweight;       // (blocks, C) one partial sum for each block of rows, or null
  float* dbias;         // (blocks, C) or null
  index_t C;
};

/// Floats of scratch that one call of a layer norm loop needs; 64-byte aligned is fastest. Static: see loops.inl.h.
static inline index_t layer_norm_scratch(index_t C) { return 2 * ((C + 31) / 16 * 16); }

/// Rows [begin, end).
using LayerNormForward = void(const LayerNormForwardArgs&, index_t begin, index_t end, float* scratch);
/// Rows [begin, end), whose partial sums are row `block` of dweight and dbias.
using LayerNormBackward = void(const LayerNormBackwardArgs&, index_t begin, index_t end, index_t block, float* scratch);
/// total[c] = the sum of partial[0..blocks)[c], in that order, for c in [begin, end).
using LayerNormReduce = void(const float* partial, index_t blocks, index_t C, index_t begin, index_t end, float* total);

}  // namespace modernbert_fast::cpu
