#define MODERNBERT_FAST_ISA_NAMESPACE avx512bf16
#include "loops.inl.h"
