"""Layer norm in plain torch: the definition of right for ops/layer_norm.py.

Two passes and one correction: the mean is subtracted, and then the mean of what is left, so that rows far from zero
keep their digits (plain two-pass and Welford lose them all at mean 1e4, spread 1e-3).
"""

from __future__ import annotations

import torch


def _centred(x: torch.Tensor, mean: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """x (T, C) in the dtype of the statistics -> x - mean (T, C), mean (T, 1)."""
    mean = x.mean(1, keepdim=True) if mean is None else mean[:, None]
    centred = x - mean
    correction = centred.mean(1, keepdim=True)
    return centred - correction, mean + correction


def forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, residual (T, C) -> y (T, C), sum (T, C) or (0,), mean (T,), rstd (T,)."""
    total = x.new_empty(0) if residual is None else x + residual
    normed = x if residual is None else total
    stats = torch.promote_types(normed.dtype, torch.float32)
    centred, mean = _centred(normed.to(stats))
    rstd = torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)
    y = centred * rstd
    if weight is not None:
        y = y * weight.to(stats)
    if bias is not None:
        y = y + bias.to(stats)
    return y.to(normed.dtype).contiguous(), total.contiguous(), mean.squeeze(1), rstd.squeeze(1)


def backward(
    dy: torch.Tensor,
    dsum: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    has_bias: bool,
    mean: torch.Tensor,
    rstd: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (T, C) as it was normed, dy (T, C) -> dx (T, C), dweight (C,) or (0,), dbias (C,) or (0,)."""
    stats = mean.dtype
    dy = dy.to(stats)
    normed = _centred(x.to(stats), mean)[0] * rstd[:, None]
    dnormed = dy if weight is None else dy * weight.to(stats)
    dx = dnormed - dnormed.mean(1, keepdim=True) - normed * (dnormed * normed).mean(1, keepdim=True)
    dx = dx * rstd[:, None]
    if dsum is not None:
        dx = dx + dsum.to(stats)
    empty = mean.new_empty(0)
    dweight = empty if weight is None else (dy * normed).sum(0)
    dbias = dy.sum(0) if has_bias else empty.clone()
    return dx.to(x.dtype).contiguous(), dweight, dbias


def embed_forward(
    ids: torch.Tensor, table: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids (T,), table (V, C) -> y (T, C), mean (T,), rstd (T,)."""
    y, _, mean, rstd = forward(table.index_select(0, ids), None, weight, bias, eps)
    return y, mean, rstd
