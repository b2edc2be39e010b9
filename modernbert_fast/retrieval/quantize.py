"""How vectors are stored: float16, or int8 with a scale a document."""

from __future__ import annotations

import torch

STORED = {"float16": torch.float16, "int8": torch.int8}


def store(vectors: torch.Tensor, bounds: torch.Tensor, dtype: str) -> dict[str, torch.Tensor]:
    """Vectors (T, D) floating point of documents (N + 1,) as an index stores them.

    int8 rounds to 127 steps of the largest element of a document, an error of at most 1/254 of that an element. One
    scale serves the whole document, so that the best of its vectors is found among integers.

    Returns:
        vectors (T, D); for int8 also scales (N,) fp32: a document's vectors times its scale are the vectors again.
    """
    if dtype == "float16":
        return {"vectors": vectors.to(torch.float16)}
    wide, lengths = vectors.float(), bounds.diff().long()
    largest = torch.segment_reduce(wide.abs().amax(dim=1), "max", lengths=lengths, initial=0) if len(wide) else None
    scales = torch.zeros(len(lengths)) if largest is None else largest / 127
    scales = torch.where(scales > 0, scales, 1)  # of documents that are empty or zero
    steps = scales.repeat_interleave(lengths)[:, None]
    return {"vectors": (wide / steps).round().clamp(-127, 127).to(torch.int8), "scales": scales}
