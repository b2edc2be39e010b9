#define MODERNBERT_FAST_ISA_NAMESPACE avx512
#include "loops.inl.h"
