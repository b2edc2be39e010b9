// What the padding loops take.
#pragma once

#include "dtype.h"

namespace modernbert_fast::cpu {

/// Number of nonzero elements of one text's mask, S elements of element_size bytes.
using PlanCount = index_t(const void* mask, index_t element_size, index_t S);

/// Writes one text's rows: indices = grid_row + column and positions = column - first column, where the mask is
/// nonzero.
using PlanFill = void(const void* mask, index_t element_size, index_t S, index_t grid_row, int64_t* indices,
                      int32_t* positions);

/// y[i] = x[source[i]] for i in [begin, end), a row of row_bytes bytes each; a zero row where source[i] < 0.
using CopyRows = void(const char* x, index_t x_stride_bytes, const int64_t* source, index_t begin, index_t end,
                      index_t row_bytes, char* y);

}  // namespace modernbert_fast::cpu
