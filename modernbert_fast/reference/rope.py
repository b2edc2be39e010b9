"""Rotary position embedding in plain torch: the definition of right for ops/rope.py."""

from __future__ import annotations

from typing import Any

import torch


def rotate(x: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (T, ..., D) in the tables' dtype; positions (T,), cos, sin (P, D / 2) -> (T, ..., D)."""
    shape = (x.shape[0], *(1 for _ in x.shape[1:-1]), cos.shape[1])
    cos, sin = (table.index_select(0, positions).view(shape) for table in (cos, sin))
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotate_qkv(qkv: torch.Tensor, positions: Any, cos: Any, sin: Any) -> torch.Tensor:
    """qkv (T, 3, H, D) in the tables' dtype -> the same with q and k rotated; unchanged where positions is None."""
    if positions is None:
        return qkv
    return torch.cat([rotate(qkv[:, :2], positions, cos, sin), qkv[:, 2:]], dim=1)


def unrotate_qkv(dqkv: torch.Tensor, positions: Any, cos: Any, sin: Any) -> torch.Tensor:
    """The inverse rotation, which is also the gradient's way back."""
    return dqkv if positions is None else rotate_qkv(dqkv, positions, cos, -sin)


def forward(qkv: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """qkv (T, 3, H, D) -> (T, 3, H, D) with q and k rotated."""
    return rotate_qkv(qkv.to(cos.dtype), positions, cos, sin).to(qkv.dtype)
