"""Attention inside each packed text, global or windowed, rotary inside. Reference: reference/attention.py."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from modernbert_fast.dispatch import QUERIES_ONLY, Call, call_of
from modernbert_fast.geometry import Geometry
from modernbert_fast.library import define, differentiable
from modernbert_fast.ops import checks, padding
from modernbert_fast.ops.rope import check_tables

GLOBAL = -1

_GEOMETRY = (
    "Tensor cu_seqlens, Tensor? positions, Tensor? cos, Tensor? sin, Tensor? columns, Tensor? attended,"
    " Tensor tiles, SymInt max_seqlen, int window, float scale"
)


def check_forward(qkv: torch.Tensor, *geometry: Any) -> None:
    """What attention asks of its arguments."""
    cu_seqlens, positions, cos, sin, columns, attended, tiles, max_seqlen, window, _ = Geometry(*geometry)
    checks.floating(qkv=qkv)
    checks.shape("qkv", qkv, None, 3, None, None)
    T, D = qkv.shape[0], qkv.shape[3]
    longest = checks.cu_seqlens("cu_seqlens", cu_seqlens, T)
    checks.shape("columns", columns, T)
    if columns is not None and columns.dtype != torch.int32:
        raise TypeError(f"columns must be int32, got {columns.dtype}")
    checks.shape("attended", attended, T)
    checks.boolean(attended=attended)
    checks.shape("tiles", tiles, None, 2)
    checks.same_device(qkv, cu_seqlens=cu_seqlens, columns=columns, attended=attended, tiles=tiles)
    if (positions is None) != (cos is None) or (cos is None) != (sin is None):
        raise ValueError("positions, cos and sin come together or not at all")
    if positions is not None:
        check_tables(T, D, qkv, positions, cos, sin)
    if window < GLOBAL:
        raise ValueError(f"window must be {GLOBAL} (global) or a distance >= 0, got {window}")
    if longest > max_seqlen:
        raise ValueError(f"max_seqlen is {max_seqlen}, but a text has {longest} tokens")


def _check_backward(do: Any, qkv: Any, o: Any, lse: Any, *geometry: Any) -> None:
    check_forward(qkv, *geometry)
    T, _, H, D = qkv.shape
    checks.floating(do=do, o=o, lse=lse)
    checks.shape("do", do, T, H, D)
    checks.shape("o", o, T, H, D)
    checks.shape("lse", lse, H, T)
    checks.same_device(qkv, do=do, o=o, lse=lse)


def _fake_forward(qkv: Any, *geometry: Any) -> tuple[torch.Tensor, torch.Tensor]:
    T, _, H, D = qkv.shape
    return qkv.new_empty((T, H, D)), qkv.new_empty((H, T), dtype=torch.promote_types(qkv.dtype, torch.float32))


def _call_forward(qkv: Any, *geometry: Any) -> Call:
    g = Geometry(*geometry)
    asked = {
        "masks with holes": g.columns is not None,
        "attention without rotary": g.positions is None,
        QUERIES_ONLY: g.attended is not None,
    }
    return call_of(qkv, flags=[flag for flag, wanted in asked.items() if wanted])


def _call_backward(do: Any, qkv: Any, o: Any, lse: Any, *geometry: Any) -> Call:
    return _call_forward(qkv, *geometry)


_forward = define(
    f"attention_forward(Tensor qkv, {_GEOMETRY}) -> (Tensor o, Tensor lse)",
    op="attention",
    fake=_fake_forward,
    call=_call_forward,
    check=check_forward,
)
_backward = define(
    f"attention_backward(Tensor do, Tensor qkv, Tensor o, Tensor lse, {_GEOMETRY}) -> Tensor",
    op="attention",
    fake=lambda do, qkv, *rest: qkv.new_empty(qkv.shape),
    call=_call_backward,
    check=_check_backward,
)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Any, *geometry: Any) -> Any:
        o, lse = _forward(qkv, *geometry)
        ctx.save_for_backward(qkv, o, lse, *geometry[:7])
        ctx.rest = geometry[7:]
        ctx.mark_non_differentiable(lse)
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Any, dlse: Any) -> Any:
        qkv, o, lse, *tensors = ctx.saved_tensors
        return _backward(do, qkv, o, lse, *tensors, *ctx.rest), *[None] * 10


def attention(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    *,
    window: int = GLOBAL,
    positions: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
    attended: torch.Tensor | None = None,
    tiles: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Bidirectional attention of each packed text with itself; texts never see one another.

    Args:
        qkv: (T, 3, H, D) before rotation: all queries, all keys, all values.
        cu_seqlens: (B + 1,) int32 bounds of the texts, from 0 to T.
        max_seqlen: length of the longest text, or more.
        window: token i sees j iff |i - j| <= window, inclusive; -1 sees the whole text.
        positions: (T,) int32 rows of the rotary tables; None for no rotation.
        cos, sin: (P, D / 2) fp32 rotary tables, with positions.
        columns: (T,) int32 places that the window is measured by, where they are not consecutive (a mask with holes).
        attended: (T,) bool, which tokens are seen; the others see these and are seen by none, themselves included (the
            expansion of a ColBERT query). None for all. A token that sees none gets zeros, as of torch's own attention.
        tiles: the tile schedule of the batch (`padding.tiles`); computed when None.
        scale: of the scores; D ** -0.5 when None.

    Returns:
        (T, H, D) of qkv's dtype. Softmax and sums in fp32, the scores of hidden pairs are never computed for
        texts longer than the window: cost T x window, not T x T.

    Raises:
        ValueError: on bounds, lengths or shapes that do not fit.
    """
    tiles = padding.tiles(cu_seqlens, qkv.shape[0]) if tiles is None else tiles
    scale = qkv.shape[-1] ** -0.5 if scale is None else scale
    if columns is not None and columns is positions:
        columns = columns.view_as(columns)  # torch.compile does not trace a Function that gets one tensor twice
    run = differentiable(_Attention, _forward)
    return run(qkv, cu_seqlens, positions, cos, sin, columns, attended, tiles, max_seqlen, window, scale)[0]
