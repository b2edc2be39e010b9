// The loops of every CPU operator for one instruction set, and the choice among them.
// Torch-free: the files compiled with wider instructions include it.
#pragma once

#include "../attention.h"
#include "../convert.h"
#include "../decompress.h"
#include "../geglu.h"
#include "../layer_norm.h"
#include "../linear.h"
#include "../maxsim.h"
#include "../padding.h"
#include "../pooling.h"
#include "../rope.h"

namespace modernbert_fast::cpu {

struct Loops {
  index_t tile_columns;
  AttentionScratchSize* attention_scratch;
  AttentionPack* attention_pack;
  AttentionForward* attention_forward;
  AttentionBackward* attention_backward;
  ToFloat* to_float;
  PlanCount* plan_count;
  PlanFill* plan_fill;
  CopyRows* copy_rows;
  LayerNormForward* layer_norm_forward;
  LayerNormBackward* layer_norm_backward;
  LayerNormReduce* layer_norm_reduce;
  Linear* linear;
  ColumnSum* column_sum;
  GegluForward* geglu_forward;
  GegluBackward* geglu_backward;
  Rope* rope;
  PoolingForward* pooling_forward;
  PoolingBackward* pooling_backward;
  MaxSimScratchSize* maxsim_scratch;
  MaxSimPack* maxsim_pack;
  MaxSimForward* maxsim_forward;
  MaxSimQueryGradient* maxsim_query_gradient;
  MaxSimDocumentGradient* maxsim_document_gradient;
  Decompress* decompress;
};

struct Isa {
  const char* name;
  bool (*supported)();
  Loops loops;
};

// One per file compiled with its own flags.
namespace baseline {
extern const Loops kLoops;
}
namespace avx2 {
extern const Loops kLoops;
}
namespace avx512 {
extern const Loops kLoops;
}
namespace avx512bf16 {
extern const Loops kLoops;
}
namespace amx {
extern const Loops kLoops;
}

/// The best supported row of the table, or the one MODERNBERT_FAST_ISA names. Chosen once.
/// Throws std::invalid_argument if that name is unknown or this machine cannot run it.
const Isa& isa();

/// Shorthand for isa().loops.
inline const Loops& loops() { return isa().loops; }

}  // namespace modernbert_fast::cpu
