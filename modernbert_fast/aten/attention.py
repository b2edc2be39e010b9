"""Packed attention by torch's own flash attention for CPUs, a text at a time, in fp32. As reference/attention.py.

A text longer than the window's reach is cut into chunks of queries, each with the keys around it: overlapping views of
the padded keys, one call a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from modernbert_fast.geometry import Geometry
from modernbert_fast.reference.attention import planes
from modernbert_fast.reference.rope import unrotate_qkv

_ROWS = 128  # queries in a chunk
_FAR = 1 << 30  # where padding lies: padded queries see padding only

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Text:
    """The rows [start, end) of a packed plane, as chunks: n = 1 where every query may meet every key."""

    def __init__(self, start: int, end: int, g: Geometry, dtype: torch.dtype) -> None:
        self.start, self.length, self.mask = start, end - start, None
        self.rows, self.count, self.reach = self.length, 1, 0
        bounded = g.window >= 0 and (g.columns is not None or g.window < self.length - 1)
        if not bounded and g.attended is None:
            return
        if bounded and self.length > _ROWS + 2 * g.window:
            self.rows, self.reach = _ROWS, g.window
            self.count = -(-self.length // _ROWS)
        hidden = torch.zeros((), dtype=torch.bool)
        if bounded:
            at = torch.arange(self.length) if g.columns is None else g.columns[start:end]
            places = F.pad(at, (self.reach, self.padding + self.reach), value=_FAR)[None, :, None]
            hidden = (self._queries(places) - self._keys(places).mT).abs() > g.window
        if g.attended is not None:
            unseen = F.pad(~g.attended[start:end], (self.reach, self.padding + self.reach))
            hidden = hidden | self._keys(unseen[None, :, None]).mT
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
        self.mask = mask.expand(-1, -1, self.rows, -1)  # where no window is, the same for every query

    @property
    def padding(self) -> int:
        """Rows that fill the last chunk."""
        return self.count * self.rows - self.length

    def pad(self, plane: torch.Tensor) -> torch.Tensor:
        """(H, T, D) -> (H, reach + count * rows + reach, D)."""
        text = plane[:, self.start : self.start + self.length]
        return F.pad(text, (0, 0, self.reach, self.padding + self.reach)) if self.count > 1 else text

    def _queries(self, padded: torch.Tensor) -> torch.Tensor:
        inner = padded[:, self.reach : padded.shape[1] - self.reach]
        return inner.unflatten(1, (self.count, self.rows)).transpose(0, 1)

    def _keys(self, padded: torch.Tensor) -> torch.Tensor:
        return padded.unfold(1, self.rows + 2 * self.reach, self.rows).permute(1, 0, 3, 2)

    def queries(self, plane: torch.Tensor) -> torch.Tensor:
        """(H, T, D) -> (n, H, rows, D)."""
        return self._queries(self.pad(plane))

    def keys(self, plane: torch.Tensor) -> torch.Tensor:
        """(H, T, D) -> (n, H, rows + 2 * reach, D), overlapping."""
        return self._keys(self.pad(plane))

    def put_queries(self, plane: torch.Tensor, chunks: torch.Tensor) -> None:
        """Writes (n, H, rows, D) to the text's rows of (H, T, D)."""
        text = chunks.transpose(0, 1).flatten(1, 2)[:, : self.length]
        plane[:, self.start : self.start + self.length] = text

    def put_keys(self, plane: torch.Tensor, chunks: torch.Tensor) -> None:
        """Adds overlapping (n, H, rows + 2 * reach, D) up, in order, and writes them to the text's rows."""
        width = chunks.shape[2]
        total = chunks.new_zeros((chunks.shape[1], self.count * self.rows + 2 * self.reach, chunks.shape[3]))
        for n, chunk in enumerate(chunks):
            total[:, n * self.rows : n * self.rows + width] += chunk
        plane[:, self.start : self.start + self.length] = total[:, self.reach : self.reach + self.length]


def _texts(g: Geometry, dtype: torch.dtype) -> Iterator[_Text]:
    bounds = g.cu_seqlens.tolist()
    for start, end in zip(bounds, bounds[1:], strict=False):
        if start < end:
            yield _Text(start, end, g, dtype)


def forward(qkv: torch.Tensor, *geometry: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """qkv (T, 3, H, D) -> o (T, H, D), lse (H, T)."""
    g = Geometry(*geometry)
    q, k, v = planes(qkv, g.positions, g.cos, g.sin)
    o, lse = torch.empty_like(q), q.new_empty(q.shape[:2])
    for text in _texts(g, q.dtype):
        out, log_sum = _flash(
            text.queries(q), text.keys(k), text.keys(v), 0.0, False, attn_mask=text.mask, scale=g.scale
        )
        text.put_queries(o, out)
        text.put_queries(lse[..., None], log_sum[..., None])
    return o.transpose(0, 1).to(qkv.dtype).contiguous(), lse


def backward(do: torch.Tensor, qkv: torch.Tensor, o: torch.Tensor, lse: torch.Tensor, *geometry: Any) -> torch.Tensor:
    """do (T, H, D) -> dqkv (T, 3, H, D)."""
    g = Geometry(*geometry)
    q, k, v = planes(qkv, g.positions, g.cos, g.sin)
    do, o = (x.to(q.dtype).transpose(0, 1) for x in (do, o))
    dplanes = q.new_empty((3, *q.shape))
    for text in _texts(g, q.dtype):
        dq, dk, dv = _flash_backward(
            text.queries(do),
            text.queries(q),
            text.keys(k),
            text.keys(v),
            text.queries(o),
            text.queries(lse[..., None]).squeeze(-1),
            0.0,
            False,
            attn_mask=text.mask,
            scale=g.scale,
        )
        text.put_queries(dplanes[0], dq)
        text.put_keys(dplanes[1], dk)
        text.put_keys(dplanes[2], dv)
    return unrotate_qkv(dplanes.permute(2, 0, 1, 3), g.positions, g.cos, g.sin).to(qkv.dtype).contiguous()
