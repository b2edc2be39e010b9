// What the late interaction loops take. Strides are in elements; the last dimension is contiguous.
#pragma once

#include "decompress.h"
#include "dtype.h"

namespace modernbert_fast::cpu {

struct MaxSimArgs {
  DType dtype;     // of d, unless it is int8
  bool bytes;      // d is int8
  const float* q;  // (Tq, D)
  index_t q_stride;
  const void* d;  // (Td, D), or null where it is compressed
  index_t d_stride;
  const CompressedArgs* compressed;  // then d as int8, else null
  const int32_t* cu_queries;         // (Bq + 1,)
  const int32_t* cu_documents;       // (Bd + 1,)
  index_t queries, documents, D;
  bool pairwise;  // query i meets document i only
};

/// Columns of scores (Bq, columns) and argmax (Tq, columns), and the one that a document's results are in.
static inline index_t maxsim_columns(const MaxSimArgs& a) { return a.pairwise ? 1 : a.documents; }
static inline index_t maxsim_column(const MaxSimArgs& a, index_t document) { return a.pairwise ? 0 : document; }

/// Whole queries that meet a document together.
struct QueryGroup {
  index_t first, last;  // queries
  index_t column;       // of its first token among the panels' columns
  bool even;            // no element stands out in a token of its queries, as far as int8 documents need to know
};

/// Query tokens after which a group ends.
static constexpr index_t kQueryGroup = 256;

struct MaxSimForwardArgs {
  MaxSimArgs in;
  const QueryGroup* groups;
  index_t group_count;
  float* panels;    // every group's tokens, transposed: (columns / W, maxsim_panel_rows, W), W = tile_columns
  float* scores;    // (Bq, columns)
  int32_t* argmax;  // (Tq, columns), or null if nobody asks for winners
};

/// Rows of a panel: elements, or for int8 documents at most what digits.inl.h packs, three for every four elements and
/// four more.
static inline index_t maxsim_panel_rows(const MaxSimArgs& a) { return a.bytes ? a.D + 7 : a.D; }

/// Units of work of the forward: one group of queries and one document. The groups of a document are neighbours.
static inline index_t maxsim_units(const MaxSimForwardArgs& a) {
  return a.in.pairwise ? a.group_count : a.in.documents * a.group_count;
}
static inline index_t maxsim_group(const MaxSimForwardArgs& a, index_t unit) { return unit % a.group_count; }
static inline index_t maxsim_document(const MaxSimForwardArgs& a, index_t unit) {
  return a.in.pairwise ? unit : unit / a.group_count;
}

/// Floats of scratch that a call of the forward needs for groups of this many columns at most.
using MaxSimScratchSize = index_t(const MaxSimArgs&, index_t columns);
/// panels of groups [begin, end).
using MaxSimPack = void(const MaxSimForwardArgs&, index_t begin, index_t end);
/// scores and argmax of units [begin, end); winners is scratch, an integer a column.
using MaxSimForward = void(const MaxSimForwardArgs&, index_t begin, index_t end, float* scratch, int32_t* winners);

struct MaxSimBackwardArgs {
  MaxSimArgs in;
  const float* dscores;     // (Bq, columns)
  const int32_t* argmax;    // (Tq, columns)
  const int32_t* query_of;  // (Tq,)
  float* dq;                // (Tq, D)
  void* dd;                 // (Td, D)
};

/// dq of tokens [begin, end).
using MaxSimQueryGradient = void(const MaxSimBackwardArgs&, index_t begin, index_t end);
/// dd of documents [begin, end). Scratch: sum (D,); chains (Tq + the longest document,).
using MaxSimDocumentGradient = void(const MaxSimBackwardArgs&, index_t begin, index_t end, float* sum, int32_t* chains);

}  // namespace modernbert_fast::cpu
