"""Between the padded grid (B, S) and packed tokens (T,). Reference: modernbert_fast/reference/padding.py."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from modernbert_fast.dispatch import call_of
from modernbert_fast.library import define
from modernbert_fast.ops import checks

TILE_ROWS = 64

_MASKS = (torch.bool, torch.uint8, torch.int32, torch.int64)


def _check_plan(mask: torch.Tensor) -> None:
    checks.shape("mask", mask, None, None)
    if mask.dtype not in _MASKS:
        raise TypeError(f"mask must be bool or integer, got {mask.dtype}")


def _fake_plan(mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    total = torch.library.get_ctx().new_dynamic_size()
    return (
        mask.new_empty(total, dtype=torch.int64),
        mask.new_empty(mask.shape[0] + 1, dtype=torch.int32),
        mask.new_empty(total, dtype=torch.int32),
    )


def _check_unpad(x: torch.Tensor, indices: torch.Tensor) -> None:
    if x.dim() < 1:
        raise ValueError("x must have at least one dimension")
    checks.shape("indices", indices, None)
    if indices.dtype != torch.int64:
        raise TypeError(f"indices must be int64, got {indices.dtype}")
    checks.same_device(x, indices=indices)
    checks.index_range("indices", indices, x.shape[0])


def _check_pad(x: torch.Tensor, indices: torch.Tensor, rows: int) -> None:
    if x.dim() < 1:
        raise ValueError("x must have at least one dimension")
    checks.shape("indices", indices, x.shape[0])
    if indices.dtype != torch.int64:
        raise TypeError(f"indices must be int64, got {indices.dtype}")
    checks.same_device(x, indices=indices)
    checks.index_range("indices", indices, rows)


def _check_tiles(cu_seqlens: torch.Tensor, total: int, rows: int) -> None:
    checks.cu_seqlens("cu_seqlens", cu_seqlens, total)
    if rows < 1:
        raise ValueError(f"rows must be positive, got {rows}")


_plan = define(
    "padding_plan(Tensor mask) -> (Tensor indices, Tensor cu_seqlens, Tensor positions)",
    op="padding",
    fake=_fake_plan,
    call=call_of,
    check=_check_plan,
)
_unpad = define(
    "padding_unpad(Tensor x, Tensor indices) -> Tensor",
    op="padding",
    fake=lambda x, indices: x.new_empty((indices.shape[0], *x.shape[1:])),
    call=lambda x, indices: call_of(x, width=0),
    check=_check_unpad,
)
_pad = define(
    "padding_pad(Tensor x, Tensor indices, SymInt rows) -> Tensor",
    op="padding",
    fake=lambda x, indices, rows: x.new_empty((rows, *x.shape[1:])),
    call=lambda x, indices, rows: call_of(x, width=0),
    check=_check_pad,
)
_tiles = define(
    "padding_tiles(Tensor cu_seqlens, SymInt total, SymInt rows) -> Tensor",
    op="padding",
    fake=lambda cu, total, rows: cu.new_empty((total // rows + cu.shape[0] - 1, 2)),
    call=lambda cu, total, rows: call_of(cu, width=0),
    check=_check_tiles,
)


class _Unpad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        rows = _unpad(x, indices)
        ctx.save_for_backward(indices)
        ctx.rows = x.shape[0]
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _pad(dy, *ctx.saved_tensors, ctx.rows), None


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
        ctx.save_for_backward(indices)
        return _pad(x, indices, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _unpad(dy, *ctx.saved_tensors), None, None


def plan(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the tokens of a padded grid lie.

    Args:
        mask: (B, S) bool or integer, non-zero where a token is.

    Returns:
        indices: (T,) int64 into the flat grid B * S, row by row.
        cu_seqlens: (B + 1,) int32, the bounds of each text among the packed tokens.
        positions: (T,) int32, the column of each token counted from the first token of its text: 0, 1, 2 ... where
            the mask of the text is one run, with gaps where it has holes.

    Raises:
        TypeError, ValueError: on another dtype or shape.
    """
    return _plan(mask)


def unpad(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Gathers the distinct rows `indices` (T,) of `x` (R, ...) -> (T, ...). Differentiable in x.

    A row that is named twice is gathered twice, but gets the gradient of one of them only.

    Raises:
        IndexError: on an index outside [0, R).
    """
    return _Unpad.apply(x, indices)


def pad(x: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
    """Scatters `x` (T, ...) to the rows `indices` (T,) of a new (rows, ...); every other row is zero. Differentiable.

    Raises:
        IndexError: on an index outside [0, rows).
    """
    return _Pad.apply(x, indices, rows)


def tiles(cu_seqlens: torch.Tensor, total: int, rows: int = TILE_ROWS) -> torch.Tensor:
    """The tile schedule of a packed batch: one entry for every `rows` queries of a text, computed without a host sync.

    Args:
        cu_seqlens: (B + 1,) int32.
        total: number of packed tokens T.
        rows: queries in a tile.

    Returns:
        (total // rows + B, 2) int32: (text, first row inside the text), texts in order; unused entries are (-1, 0).
    """
    return _tiles(cu_seqlens, total, rows)
