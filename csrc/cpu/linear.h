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

/// y = a b^T + bias (M, N); or with `glu`, where b and bias have 2 N rows, gelu(the first N columns of that) * the
/// rest.
struct LinearArgs {
  DType dtype;
  Operand a;         // (M, K)
  Operand b;         // (N or 2 N, K)
  const void* bias;  // (N or 2 N,) or null
  bool glu;
  void* y;  // (M, N), contiguous
  index_t M, N, K;
  index_t columns;  // of y that one unit of work makes, a multiple of kLinearColumns
};

static constexpr index_t kLinearRows = 48;     // of y that one unit makes: its block of a stays in the L2 cache
static constexpr index_t kLinearColumns = 64;  // a multiple of the tile's columns on every instruction set

/// Units of work, those with the same columns one after another.
static inline index_t linear_units(const LinearArgs& a) {
  return (a.N + a.columns - 1) / a.columns * ((a.M + kLinearRows - 1) / kLinearRows);
}

/// Floats between the rows of a packed block of a: K, up to whole vectors of every instruction set.
static inline index_t linear_depth(index_t K) { return (K + 15) / 16 * 16; }

/// Floats of scratch that one call needs.
static inline index_t linear_scratch(const LinearArgs& a) {
  return a.K * a.columns * (a.glu ? 2 : 1) + kLinearRows * (linear_depth(a.K) + kLinearColumns);
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
