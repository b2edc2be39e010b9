// What the loop of matrix products takes. Strides are in elements.
#pragma once

#include "dtype.h"

namespace modernbert_fast::cpu {

/// A matrix of rows x inner elements, or its transpose.
struct Operand {
  const void* data;
  index_t stride;
  bool transposed;  // element (r, k) is data[k * stride + r], else data[r * stride + k]
};

/// The weights of the product that follows, which a thread brings near while it computes its last columns.
struct Upcoming {
  const void* data;  // (N or 2 N, K), contiguous, or null
  index_t N, K;
  bool glu;
};

/// y = x w^T + bias (M, N); or with `glu`, where w and bias have 2 N rows, gelu(the first N columns of that) * the
/// rest.
struct LinearArgs {
  DType dtype;
  Operand x;         // (M, K)
  Operand w;         // (N or 2 N, K)
  const void* bias;  // (N or 2 N,) or null
  bool glu;
  void* y;  // (M, N), contiguous
  index_t M, N, K;
  index_t rows;  // of x that are packed at a time, a multiple of kLinearRows
  Upcoming next;
};

static constexpr index_t kLinearRows = 32;     // rows are packed in multiples of this, whole tiles everywhere
static constexpr index_t kLinearColumns = 48;  // of y that one unit makes: their rows of w stay in the L2 cache
static constexpr index_t kLinearDepth = 256;   // of the inner sum at a time, in steps of one element or of a pair

/// Units of work, those with the same rows one after another.
static inline index_t linear_units(const LinearArgs& a) {
  return (a.M + a.rows - 1) / a.rows * ((a.N + kLinearColumns - 1) / kLinearColumns);
}

/// Floats of scratch that one call needs.
static inline index_t linear_scratch(const LinearArgs& a) {
  const index_t weights = (a.glu ? 2 : 1) * kLinearColumns;  // rows of w that one unit takes
  return a.rows * (a.K + weights) + weights * kLinearDepth;
}

struct ColumnSumArgs {
  DType dtype;
  const void* x;  // (rows, columns)
  index_t stride;
  void* y;  // (columns,)
  index_t rows;
};

/// Units [begin, end).
using Linear = void(const LinearArgs&, index_t begin, index_t end, float* scratch);
/// Columns [begin, end).
using ColumnSum = void(const ColumnSumArgs&, index_t begin, index_t end);

}  // namespace modernbert_fast::cpu
