"""How vectors are stored: float16, int8 with a scale a document, or 4 bits an element and such a scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modernbert_fast.ops import Compressed
from modernbert_fast.retrieval import residual

STORED = {"float16": torch.float16, "int8": torch.int8}  # and residual4, which is no one tensor


def store(vectors: torch.Tensor, bounds: torch.Tensor, dtype: str) -> dict[str, torch.Tensor]:
    """Vectors (T, D) floating point of documents (N + 1,) as an index stores them.

    int8 rounds to 127 steps of the largest element of a document, an error of at most 1/254 of that an element. One
    scale serves the whole document, so that the best of its vectors is found among integers. residual4 has integers and
    a scale too, in proportion to the document's longest vector, so that vectors of one length are near the same
    centroids; of the integers it keeps what residual.encode says.

    Returns:
        vectors (T, D), or the parts of a Compressed for residual4; for both kinds of integers also scales (N,) fp32: a
        document's vectors times its scale are the vectors again.
    """
    if dtype == "float16":
        return {"vectors": vectors.to(torch.float16)}
    wide, lengths = vectors.float(), bounds.diff().long()
    largest = wide.abs().amax(dim=1) if len(wide) else wide.new_empty(0)
    if dtype == "int8":
        scales = _of_documents(largest, lengths) / 127
    else:
        norms = _of_documents(wide.norm(dim=1), lengths)
        longest = norms.repeat_interleave(lengths)  # 0 where squares are too small for fp32
        share = torch.where(longest > 0, largest / longest, 0).clamp(max=1)
        scales = norms * float(share.amax() if len(share) else 1) / residual.LARGEST
    steps = torch.where(scales > 0, scales, 1)  # the scale of documents that are empty or zero is 0
    integers = wide / steps.repeat_interleave(lengths)[:, None]
    if dtype == "int8":
        return {"vectors": integers.round().clamp(-127, 127).to(torch.int8), "scales": scales}
    return {**vars(residual.encode(integers.clamp(-residual.LARGEST, residual.LARGEST))), "scales": scales}


def joined(parts: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Several stored vectors, end to end, as they are stored; bits as they are."""
    if isinstance(parts[0], Compressed):
        return vars(residual.joined(parts))
    return {"vectors": torch.cat(list(parts))}


def _of_documents(sizes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(N,) the largest of the sizes (T,) of each document's vectors, 0 of an empty one."""
    if not len(sizes):
        return sizes.new_zeros(len(lengths))
    return torch.segment_reduce(sizes, "max", lengths=lengths, initial=0)
