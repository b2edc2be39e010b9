// What the loop over compressed vectors takes.
#pragma once

#include "dtype.h"

namespace modernbert_fast::cpu {

static constexpr index_t kLevels = 16;  // that four bits name

struct DecompressArgs {
  const uint8_t* codes;  // (T, D / 2, rounded up): element k in the low bits of byte k, the second half in the high bits
  index_t codes_stride;
  const int16_t* nearest;   // (T,), within [0, K)
  const int8_t* centroids;  // (K, D)
  const int8_t* levels;     // (K, kLevels)
  int8_t* y;                // (T, D)
  index_t D;
};

/// Vectors [begin, end).
using Decompress = void(const DecompressArgs&, index_t begin, index_t end);

}  // namespace modernbert_fast::cpu
