"""Packed attention in plain torch: the definition of right for ops/attention.py.

Texts are taken one by one and queries in blocks; a windowed block meets only the keys its window reaches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from modernbert_fast.geometry import Geometry
from modernbert_fast.reference.rope import rotate_qkv, unrotate_qkv

_BLOCK = 64  # queries at a time: the scores of a block stay near the cache even at 8,192 keys


def planes(qkv: torch.Tensor, positions: Any, cos: Any, sin: Any) -> tuple[torch.Tensor, ...]:
    """qkv (T, 3, H, D) -> q, k, v (H, T, D) rotated, in the dtype of the softmax."""
    wide = rotate_qkv(qkv.to(torch.promote_types(qkv.dtype, torch.float32)), positions, cos, sin)
    return wide.permute(1, 2, 0, 3).contiguous().unbind(0)


def _blocks(
    cu_seqlens: torch.Tensor, columns: torch.Tensor | None, attended: torch.Tensor | None, window: int
) -> Iterator[tuple[slice, slice, torch.Tensor | None]]:
    """Queries, the keys they may meet, and which of these are hidden from which queries (None: none)."""
    bounds = cu_seqlens.tolist()
    if columns is None:
        columns = torch.arange(bounds[-1], device=cu_seqlens.device)
    for start, end in zip(bounds, bounds[1:], strict=False):
        for first in range(start, end, _BLOCK):
            last = min(first + _BLOCK, end)
            rows, keys, hidden = slice(first, last), slice(start, end), None
            if window >= 0:
                # Columns rise by at least one a token, so no key within the window lies outside this slice.
                keys = slice(max(start, first - window), min(end, last + window))
                hidden = (columns[rows, None] - columns[None, keys]).abs() > window
            if attended is not None:
                unseen = ~attended[keys].expand(last - first, -1)
                hidden = unseen if hidden is None else hidden | unseen
            yield rows, keys, hidden


def _scores(q: torch.Tensor, k: torch.Tensor, hidden: torch.Tensor | None, scale: float) -> torch.Tensor:
    scores = torch.matmul(q * scale, k.transpose(1, 2))
    return scores if hidden is None else scores.masked_fill_(hidden, float("-inf"))


def forward(qkv: torch.Tensor, *geometry: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """qkv (T, 3, H, D) -> o (T, H, D), lse (H, T) natural log, fp32 (fp64 for fp64)."""
    g = Geometry(*geometry)
    T, _, H, D = qkv.shape
    q, k, v = planes(qkv, g.positions, g.cos, g.sin)
    o, lse = q.new_empty((H, T, D)), q.new_empty((H, T))
    for rows, keys, hidden in _blocks(g.cu_seqlens, g.columns, g.attended, g.window):
        scores = _scores(q[:, rows], k[:, keys], hidden, g.scale)
        peak = scores.amax(dim=-1, keepdim=True)
        if g.attended is not None:
            peak = peak.clamp_min(torch.finfo(peak.dtype).min)  # all are hidden: all weights are 0
        weights = scores.sub_(peak).exp_()
        total = weights.sum(dim=-1, keepdim=True)
        o[:, rows] = torch.matmul(weights, v[:, keys]) / total.where(total != 0, 1)
        lse[:, rows] = (peak + total.log()).squeeze(-1)
    return o.transpose(0, 1).to(qkv.dtype).contiguous(), lse


def backward(do: torch.Tensor, qkv: torch.Tensor, o: torch.Tensor, lse: torch.Tensor, *geometry: Any) -> torch.Tensor:
    """do (T, H, D) -> dqkv (T, 3, H, D); probabilities are recomputed."""
    g = Geometry(*geometry)
    q, k, v = planes(qkv, g.positions, g.cos, g.sin)
    do = do.to(q.dtype).transpose(0, 1)
    delta = (do * o.to(q.dtype).transpose(0, 1)).sum(-1, keepdim=True)
    dqkv = q.new_zeros((3, *q.shape))
    dq, dk, dv = dqkv.unbind(0)
    for rows, keys, hidden in _blocks(g.cu_seqlens, g.columns, g.attended, g.window):
        # Not exp(scores - lse): at scores of 1e3 the last place of an fp32 lse is 1e-4.
        p = torch.softmax(_scores(q[:, rows], k[:, keys], hidden, g.scale), dim=-1)
        if hidden is not None and g.attended is not None:
            p = p.masked_fill(hidden.all(-1, keepdim=True), 0.0)
        ds = p * (torch.matmul(do[:, rows], v[:, keys].transpose(1, 2)) - delta[:, rows]) * g.scale
        dq[:, rows] = torch.matmul(ds, k[:, keys])
        dk[:, keys] += torch.matmul(ds.transpose(1, 2), q[:, rows])
        dv[:, keys] += torch.matmul(p.transpose(1, 2), do[:, rows])
    return unrotate_qkv(dqkv.permute(2, 0, 1, 3), g.positions, g.cos, g.sin).to(qkv.dtype).contiguous()
