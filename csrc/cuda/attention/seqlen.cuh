// Which rows a block of threads has: texts and the tile schedule, held inside [0, T] whatever they say.
#pragma once

#include <instructions.cuh>

#include "params.h"

namespace modernbert_fast::cuda {

/// Rows [first, end) of the text [start, end), as rows of the batch, of which the block takes the front; first == end
/// where there are none.
struct OwnRows {
  int start, end, first;
};

__device__ __forceinline__ int clamped(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

/// Entries of the schedule are kTileRows apart: a larger block takes every so manieth, and the others have none.
template <int kRows>
__device__ __forceinline__ OwnRows own_rows(const AttentionGeometry& g, index_t block) {
  static_assert(kRows % kTileRows == 0, "an entry of the schedule is one block's, or none's");
  if (block >= g.entries) return {0, 0, 0};
  const int text = g.tiles[2 * block], row = g.tiles[2 * block + 1];
  if (text < 0 || text >= g.B || row < 0 || row % kRows != 0) return {0, 0, 0};
  const int total = static_cast<int>(g.T);
  const int start = clamped(g.cu_seqlens[text], 0, total);
  const int end = clamped(g.cu_seqlens[text + 1], start, total);
  return {start, end, row < end - start ? start + row : end};
}

/// The rows that kRows rows from the first may see, in whole steps from the start of the text, so that what is summed
/// together does not depend on the batch.
template <int kRows, int kStep>
__device__ __forceinline__ void reach(const OwnRows& rows, int64_t window, int& begin, int& end) {
  begin = rows.start;
  end = rows.end;
  if (window < 0) return;
  const int before = rows.first - rows.start, after = rows.end - rows.first;
  begin += before > window ? (before - static_cast<int>(window)) / kStep * kStep : 0;
  end = after > window + kRows ? rows.first + kRows + static_cast<int>(window) : end;
}

/// Calls zero(t) for the rows that no text has among those of this block: each block minds kTileRows rows of the batch
/// besides its own.
template <class Zero>
__device__ __forceinline__ void for_rows_of_no_text(const AttentionGeometry& g, const Zero& zero) {
  const index_t first = g.cu_seqlens[0], last = g.cu_seqlens[g.B];
  const index_t begin = blockIdx.x * index_t{kTileRows};
  if (begin >= first && begin + kTileRows <= last) return;
  const index_t end = begin + kTileRows < g.T ? begin + kTileRows : g.T;
  for (index_t t = begin + threadIdx.x; t < end; t += blockDim.x)
    if (t < first || t >= last) zero(t);
}

/// Blocks for all entries of the schedule and all rows, for each head.
inline dim3 attention_grid(const AttentionGeometry& g) {
  const index_t rows = (g.T + kTileRows - 1) / kTileRows;
  return dim3(static_cast<unsigned>(g.T == 0 ? 0 : rows > g.entries ? rows : g.entries), static_cast<unsigned>(g.H));
}

}  // namespace modernbert_fast::cuda
