"""From the encoder's packed rows to the vectors that are kept: projections, unit length, only the tokens that count."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from modernbert_fast import encoder, ops


def dense(module: Any, x: torch.Tensor) -> torch.Tensor:
    """A Dense module of sentence-transformers on packed rows: (T, K) -> (T, N)."""
    y = module.activation_function(encoder.project(module.linear, x))
    if not module.use_residual:
        return y
    return y + (x if module.in_features == module.out_features else encoder.project(module.residual, x))


def select(x: torch.Tensor, kept: torch.Tensor, normalize: bool) -> torch.Tensor:
    """Some of the rows, of unit length if asked, in one pass.

    Args:
        x: (T, D) floating point.
        kept: (N,) int64, rising.

    Returns:
        (N, D) of x's dtype.
    """
    # Pooling takes the first row of each text: here a text starts at every row that is kept. One more, which may be
    # empty, holds what comes before.
    starts = pad(pad(kept, (1, 0)), (0, 1), value=x.shape[0]).to(torch.int32)
    return ops.pooling(x, starts, "cls", normalize)[1:]
