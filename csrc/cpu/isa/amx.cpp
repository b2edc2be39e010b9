#define MODERNBERT_FAST_ISA_NAMESPACE amx
#include "loops.inl.h"
