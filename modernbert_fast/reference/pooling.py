"""Pooling of packed texts in plain torch: the definition of right for ops/pooling.py."""

from __future__ import annotations

import torch

_SMALLEST_NORM = 1e-12


def forward(x: torch.Tensor, cu_seqlens: torch.Tensor, mode: str, normalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """x (T, C) -> y (B, C), norm (B,) the length each row was divided by (ones without normalize)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    bounds = cu_seqlens.tolist()
    y = wide.new_zeros((len(bounds) - 1, x.shape[1]))
    for text, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        if start < end:
            y[text] = wide[start] if mode == "cls" else wide[start:end].mean(0)
    norm = y.new_ones(y.shape[0])
    if normalize:
        norm = torch.linalg.vector_norm(y, dim=1).clamp_min(_SMALLEST_NORM)
        y = y / norm[:, None]
    return y.to(x.dtype), norm


def backward(
    dy: torch.Tensor,
    y: torch.Tensor,
    norm: torch.Tensor,
    cu_seqlens: torch.Tensor,
    mode: str,
    normalize: bool,
    T: int,
) -> torch.Tensor:
    """dy, y (B, C) -> dx (T, C)."""
    dpooled, wide = dy.to(norm.dtype), y.to(norm.dtype)
    if normalize:
        dpooled = (dpooled - wide * (dpooled * wide).sum(1, keepdim=True)) / norm[:, None]
    dx = norm.new_zeros((T, y.shape[1]))
    bounds = cu_seqlens.tolist()
    for text, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        if start < end and mode == "cls":
            dx[start] = dpooled[text]
        elif start < end:
            dx[start:end] = dpooled[text] / (end - start)
    return dx.to(y.dtype)
