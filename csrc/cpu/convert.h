// Conversion of small parameters, such as a norm's weight, to what the loops compute in.
#pragma once

#include "dtype.h"

namespace modernbert_fast::cpu {

/// y[i] = x[i] for i in [0, n).
using ToFloat = void(const void* x, DType dtype, index_t n, float* y);

}  // namespace modernbert_fast::cpu
