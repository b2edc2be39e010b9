"""The best of each query's scores, in one launch or a few. Reference: modernbert_fast/reference/ranking.py.

A program takes the k best of its block, one after the other: a score and its document make one int64, larger for the
earlier of equals, so no two are equal. What the programs found is ranked again until one block holds it. Reads a score,
two bounds, a scale and a byte a document, 17 bytes at most, and writes 8 k bytes a block.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from modernbert_fast.kernels import launch
from modernbert_fast.kernels.texts import number, ordered

NONE, LOW = tl.constexpr(-(2**63)), tl.constexpr(2**32 - 1)


@triton.jit
def _keys(scores_ptr, cu_documents_ptr, scales_ptr, allowed_ptr, n, found):
    """int64 that order as the scores of documents n do, of equals the earlier one larger; NONE where none is found."""
    score = tl.load(scores_ptr, mask=found, other=0).to(tl.float32)
    if scales_ptr is not None:
        score *= tl.load(scales_ptr + n, mask=found, other=0)
    start = tl.load(cu_documents_ptr + n, mask=found, other=0)
    found &= (tl.load(cu_documents_ptr + n + 1, mask=found, other=0) > start) & (score > float("-inf"))
    if allowed_ptr is not None:
        found &= tl.load(allowed_ptr + n, mask=found, other=0) != 0
    return tl.where(found, (ordered(score + 0.0).to(tl.int64) << 32) | (LOW - n.to(tl.int64)), NONE)  # -0 becomes 0


@triton.jit
def _fwd_kernel(
    scores_ptr,  # (B, N), in a later launch int64
    cu_documents_ptr, scales_ptr, allowed_ptr,  # (N + 1,), (N,), (N,); None in a later launch
    best_ptr,  # (B, blocks, k) int64, or with LAST (B, k) fp32
    documents_ptr,  # (B, k) int64 with LAST
    N, blocks, k,
    LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    n = block * BLOCK + tl.arange(0, BLOCK)
    scores_ptr += row * N + n
    if cu_documents_ptr is None:
        key = tl.load(scores_ptr, mask=n < N, other=NONE)
    else:
        key = _keys(scores_ptr, cu_documents_ptr, scales_ptr, allowed_ptr, n, n < N)
    to = tl.program_id(0).to(tl.int64) * k
    for i in range(k):
        top = tl.max(key, axis=0)
        key = tl.where(key == top, NONE, key)
        if LAST:
            tl.store(best_ptr + to + i, tl.where(top > NONE, number((top >> 32).to(tl.int32)), float("-inf")))
            tl.store(documents_ptr + to + i, tl.where(top > NONE, LOW - (top & LOW), -1))
        else:
            tl.store(best_ptr + to + i, top)


def forward(
    scores: torch.Tensor,
    cu_documents: torch.Tensor,
    scales: torch.Tensor | None,
    allowed: torch.Tensor | None,
    k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """scores (B, N), cu_documents (N + 1,), scales (N,), allowed (N,) -> best (B, k) fp32, documents (B, k) int64."""
    B = scores.shape[0]
    best = scores.new_empty((B, k), dtype=torch.float32)
    documents = scores.new_empty((B, k), dtype=torch.int64)
    facts: tuple[Any, ...] = cu_documents.contiguous(), launch.dense(scales), launch.dense(allowed)
    found = scores.contiguous()
    while True:
        N = found.shape[1]
        block = launch.ranking(N)
        blocks = launch.cdiv(max(N, 1), block["BLOCK"])
        last = blocks == 1
        to = best if last else found.new_empty((B, blocks * k), dtype=torch.int64)
        launch.start(_fwd_kernel, (B * blocks,), found, found, *facts, to, documents, N, blocks, k, LAST=last, **block)
        if last:
            return best, documents
        found, facts = to, (None, None, None)
