#define MODERNBERT_FAST_ISA_NAMESPACE avx2
#include "loops.inl.h"
