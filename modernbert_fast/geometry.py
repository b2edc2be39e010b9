"""What attention needs to know of a batch and a layer besides qkv: one tuple, in the order of the ops' schema."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Geometry(NamedTuple):
    """The tail of the arguments of attention_forward and attention_backward.

    Attributes:
        cu_seqlens: (B + 1,) int32 bounds of the texts.
        positions: (T,) rows of the rotary tables, or None for no rotation.
        cos, sin: (P, D / 2) rotary tables, or None.
        columns: (T,) what the window is measured by where the mask has holes, or None.
        attended: (T,) bool, which tokens are keys and values, or None for all.
        tiles: (N, 2) tile schedule.
        max_seqlen: an upper bound of the lengths.
        window: i sees j iff |i - j| <= window; -1 sees the whole text.
        scale: of the scores.
    """

    cu_seqlens: torch.Tensor
    positions: torch.Tensor | None
    cos: torch.Tensor | None
    sin: torch.Tensor | None
    columns: torch.Tensor | None
    attended: torch.Tensor | None
    tiles: torch.Tensor
    max_seqlen: int
    window: int
    scale: float
