// Element types as the loops see them.
#pragma once

#include <stdint.h>

namespace modernbert_fast::cpu {

using index_t = int64_t;

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

enum class DType { kFloat, kBFloat16, kHalf };

}  // namespace modernbert_fast::cpu
