"""How vectors are stored: float16, or int8 with a scale a vector."""

from __future__ import annotations

import torch

STORED = {"float16": torch.float16, "int8": torch.int8}


def store(vectors: torch.Tensor, dtype: str) -> dict[str, torch.Tensor]:
    """Vectors (T, D) floating point as an index stores them.

    int8 rounds each vector to 127 steps of its own largest element: an error of at most 1/254 of that an element.

    Returns:
        vectors (T, D); for int8 also scales (T,) fp32, so that vectors * scales are the vectors again.
    """
    if dtype == "float16":
        return {"vectors": vectors.to(torch.float16)}
    wide = vectors.float()
    scales = wide.abs().amax(dim=1) / 127
    steps = torch.where(scales > 0, scales, 1)[:, None]
    return {"vectors": (wide / steps).round().clamp(-127, 127).to(torch.int8), "scales": scales}


def load(vectors: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """Stored vectors as floating point: float16 as it is, int8 as fp32."""
    return vectors if scales is None else vectors.float() * scales[:, None]
