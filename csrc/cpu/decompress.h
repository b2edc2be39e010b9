// What the loops over compressed vectors take.
#pragma once

#include "dtype.h"

namespace modernbert_fast::cpu {

static constexpr index_t kLevels = 16;  // that four bits name

struct CompressedArgs {
  const uint8_t* codes;  // (T, H), H half of D rounded up: element h in the low bits of byte h, H + h in the high ones
  index_t codes_stride;
  const int16_t* nearest;   // (T,), within [0, K)
  const int8_t* centroids;  // (K, D)
  const int8_t* levels;     // (K, kLevels)
  index_t D;
};

/// y (end - begin, D): vectors [begin, end).
using Decompress = void(const CompressedArgs&, index_t begin, index_t end, int8_t* y);

}  // namespace modernbert_fast::cpu
