#define MODERNBERT_FAST_ISA_NAMESPACE baseline
#include "loops.inl.h"
