// What the attention loops take. Strides are in elements; the last dimension is contiguous.
#pragma once

#include "dtype.h"
#include "rope.h"

namespace modernbert_fast::cpu {

struct AttentionArgs {
  DType dtype;
  const void* qkv;  // (T, 3, H, D)
  index_t stride_t;
  index_t stride_part;
  index_t stride_h;
  Rotary rotary;           // positions null: no rotation
  const int32_t* columns;  // (T,) what the window is measured by; null: the rows themselves
  const int8_t* attended;  // (T,) and a tile's columns more: 0 where a token is no key; null: all are
  index_t T, H, D;
  index_t window;  // i sees j iff |i - j| <= window; negative sees the whole text
  float scale;
};

/// As many keys of one text as a tile has columns; the last panel of a text may hold fewer.
struct KeyPanel {
  index_t first;  // token
  index_t keys;
};

/// Queries of one text and head. Blocks start at multiples of kQueryBlock from the text's first token, so what is
/// computed for a text does not depend on its neighbours.
struct QueryBlock {
  index_t start, end;  // tokens of the text
  index_t panel;       // its first key panel
  index_t head;
  index_t first;  // token
};

static constexpr index_t kQueryBlock = 96;
static constexpr index_t kLargestHead = 4096;  // elements of D that the scratch of a block has room for, and more

struct AttentionForwardArgs {
  AttentionArgs in;
  // Keys (rotated) and values in fp32, or in pairs of bfloat16 that fill half as many lanes, by panels; P panels of W =
  // tile_columns keys, D_ = D up to a multiple of W.
  index_t first_head, heads;  // the group of heads at work, G = heads
  index_t panels;             // P
  float* keys;                // (G, P, D, W)
  float* values;              // (G, D_ / W, P * W, W)
  void* o;                    // (T, H, D)
  float* lse;                 // (H, T)
};

/// Floats of scratch that one call of a loop needs.
struct AttentionScratch {
  index_t pack;
  index_t forward;
  index_t backward;  // for a text of the longest length
};
using AttentionScratchSize = AttentionScratch(index_t D, index_t longest);
/// keys and values of panels [begin, end).
using AttentionPack = void(const AttentionForwardArgs&, const KeyPanel* panels, index_t begin, index_t end,
                           float* scratch);
/// o and lse of blocks [begin, end).
using AttentionForward = void(const AttentionForwardArgs&, const QueryBlock* blocks, index_t begin, index_t end,
                              float* scratch);

struct AttentionBackwardArgs {
  AttentionArgs in;
  const void* d_o;  // (T, H, D)
  index_t d_o_stride_t;
  index_t d_o_stride_h;
  void* dqkv;  // (T, 3, H, D), contiguous
};

/// A text of one head.
struct HeadOfText {
  index_t start, end;
  index_t head;
};

/// dqkv of the pairs [begin, end).
using AttentionBackward = void(const AttentionBackwardArgs&, const HeadOfText* pairs, index_t begin, index_t end,
                               float* scratch);

}  // namespace modernbert_fast::cpu
