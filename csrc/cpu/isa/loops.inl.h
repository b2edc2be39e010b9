// The body of every per-ISA file: all loops, in the namespace MODERNBERT_FAST_ISA_NAMESPACE.
// No torch and no STL header may be included here: the linker could merge one of their inline functions, compiled
// with wide instructions, into the code that every machine runs.
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "isa.h"

namespace modernbert_fast::cpu::MODERNBERT_FAST_ISA_NAMESPACE {

namespace {

// clang-format off: simd.inl.h, math.inl.h and tile.inl.h serve the others
#include "simd.inl.h"
#include "math.inl.h"
#include "tile.inl.h"
#include "bfloat16.inl.h"
#include "../convert.inl.h"
#include "../padding.inl.h"
#include "../layer_norm.inl.h"
#include "../geglu.inl.h"
#include "../linear.inl.h"
#include "../rope.inl.h"
#include "../pooling.inl.h"
#include "../attention.inl.h"
#include "../digits.inl.h"
#include "../decompress.inl.h"
#include "../maxsim.inl.h"
// clang-format on

}  // namespace

const Loops kLoops = {
    kTileColumns,
    attention_scratch,
    attention_pack,
    attention_forward,
    attention_backward,
    to_float,
    plan_count,
    plan_fill,
    copy_rows,
    layer_norm_forward,
    layer_norm_backward,
    layer_norm_reduce,
    linear,
    column_sum,
    geglu_forward,
    geglu_backward,
    rope,
    pooling_forward,
    pooling_backward,
    maxsim_scratch,
    maxsim_pack,
    maxsim_forward,
    maxsim_query_gradient,
    maxsim_document_gradient,
    decompress,
};

}  // namespace modernbert_fast::cpu::MODERNBERT_FAST_ISA_NAMESPACE
