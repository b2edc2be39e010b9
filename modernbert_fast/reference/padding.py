"""Padded grid <-> packed tokens in plain torch: the definition of right for ops/padding.py."""

from __future__ import annotations

import torch


def plan(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """mask (B, S) -> indices (T,) int64, cu_seqlens (B + 1,) int32, positions (T,) int32."""
    grid = mask != 0
    B, S = grid.shape
    cu_seqlens = torch.zeros(B + 1, dtype=torch.int32, device=mask.device)
    cu_seqlens[1:] = grid.sum(1).cumsum(0)
    indices = grid.flatten().nonzero().squeeze(1)
    text, column = indices // max(S, 1), indices % max(S, 1)
    first = grid.int().argmax(1) if S else grid.new_zeros(B, dtype=torch.int64)
    return indices, cu_seqlens, (column - first[text]).int()


def unpad(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """x (R, ...), indices (T,) -> (T, ...)."""
    return x.index_select(0, indices)


def pad(x: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
    """x (T, ...), indices (T,) -> (rows, ...), zero elsewhere."""
    return x.new_zeros((rows, *x.shape[1:])).index_copy_(0, indices.long(), x)


def tiles(cu_seqlens: torch.Tensor, total: int, rows: int) -> torch.Tensor:
    """cu_seqlens (B + 1,) -> (total // rows + B, 2) int32 of (text, first row), unused entries (-1, 0)."""
    counts = (cu_seqlens.diff() + rows - 1) // rows
    ends = counts.cumsum(0)
    slot = torch.arange(total // rows + counts.numel(), device=cu_seqlens.device)
    text = torch.searchsorted(ends, slot, right=True)
    used = text < counts.numel()
    text = torch.where(used, text, 0)
    first = (slot - (ends - counts)[text]) * rows if counts.numel() else slot
    return torch.stack([torch.where(used, text, -1), torch.where(used, first, 0)], 1).int()
