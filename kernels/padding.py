"""Padded grid (B, S) <-> packed tokens (T,), and the tile schedule. Reference: modernbert_fast/reference/padding.py.

plan reads the mask twice and writes 12 bytes a token; it waits for the GPU once, for the number of tokens. unpad reads
and writes each row that it moves once; pad reads those, and writes every row of the grid once. Rows move as the widest
integers that divide them, whatever their dtype. tiles writes 8 bytes an entry and waits for nothing. No flops.
"""

import math

import torch
import triton
import triton.language as tl

from modernbert_fast.kernels import launch
from modernbert_fast.kernels.texts import bounds

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def _tokens(mask_ptr, stride_mb, stride_ms, first, S, BLOCK: tl.constexpr):
    """Columns (BLOCK,) from `first` on of the program's row, and whether they hold tokens."""
    column = first + tl.arange(0, BLOCK)
    place = mask_ptr + tl.program_id(0).to(tl.int64) * stride_mb + column.to(tl.int64) * stride_ms
    return column, tl.load(place, mask=column < S, other=0) != 0


@triton.jit
def _count_kernel(
    mask_ptr,  # (B, S)
    cu_seqlens_ptr,  # (B + 1,): the number of tokens of text b goes to place b + 1
    stride_mb,
    stride_ms,
    S,
    BLOCK: tl.constexpr,
):
    count = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, S, BLOCK):
        _, token = _tokens(mask_ptr, stride_mb, stride_ms, first, S, BLOCK)
        count += token.to(tl.int32)
    tl.store(cu_seqlens_ptr + tl.program_id(0) + 1, tl.sum(count, axis=0))


@triton.jit
def _plan_kernel(
    mask_ptr,  # (B, S)
    cu_seqlens_ptr,  # (B + 1,)
    indices_ptr,  # (T,) int64
    positions_ptr,  # (T,)
    stride_mb,
    stride_ms,
    S,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * S
    t = tl.load(cu_seqlens_ptr + tl.program_id(0))
    origin = tl.full((), 2**31 - 1, tl.int32)  # the column of the text's first token
    for first in range(0, S, BLOCK):
        column, token = _tokens(mask_ptr, stride_mb, stride_ms, first, S, BLOCK)
        origin = tl.minimum(origin, tl.min(tl.where(token, column, 2**31 - 1), axis=0))
        rank = tl.cumsum(token.to(tl.int32), axis=0)
        tl.store(indices_ptr + t + rank - 1, row + column, mask=token)
        tl.store(positions_ptr + t + rank - 1, column - origin, mask=token)
        t += tl.max(rank, axis=0)


def plan(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """mask (B, S) -> indices (T,) int64, cu_seqlens (B + 1,) int32, positions (T,) int32."""
    B, S = mask.shape
    grid = mask.view(torch.uint8) if mask.dtype == torch.bool else mask
    cu_seqlens = mask.new_zeros(B + 1, dtype=torch.int32)
    launch.start(_count_kernel, (B,), grid, grid, cu_seqlens, *grid.stride(), S, **launch.LINE)
    cu_seqlens.cumsum_(0)
    T = int(cu_seqlens[-1])
    indices, positions = mask.new_empty(T, dtype=torch.int64), mask.new_empty(T, dtype=torch.int32)
    launch.start(_plan_kernel, (B,), grid, grid, cu_seqlens, indices, positions, *grid.stride(), S, **launch.LINE)
    return indices, cu_seqlens, positions


@triton.jit
def _move_kernel(
    x_ptr,  # (R, W) integers
    source_ptr,  # (T,) int64: the row of x that comes here; zeros do where it is outside [0, R)
    y_ptr,  # (T, W)
    stride_xr,
    T,
    R,
    W,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    across = tl.cdiv(W, COLUMNS)
    t = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    w = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    source = tl.load(source_ptr + t, mask=t < T, other=-1)
    held = ((source >= 0) & (source < R))[:, None] & (w < W)[None, :]
    row = tl.load(x_ptr + source[:, None] * stride_xr + w[None, :], mask=held, other=0)
    tl.store(y_ptr + t[:, None] * W + w[None, :], row, mask=(t < T)[:, None] & (w < W)[None, :])


def unpad(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """x (R, ...), indices (T,) -> (T, ...)."""
    rows = launch.inner_dense(x.flatten(1) if x.dim() > 1 else x[:, None])
    size = x.element_size()
    lies = (rows.shape[1] * size, rows.stride(0) * size, rows.storage_offset() * size, rows.data_ptr())
    rows = rows.view(_INTEGERS[math.gcd(8, *lies)])
    T, (R, W) = indices.shape[0], rows.shape
    y = x.new_empty((T, *x.shape[1:]))
    tile = launch.moves(W)
    launch.start(
        _move_kernel, (launch.cdiv(T, tile.rows) * launch.cdiv(W, tile.width),), x,
        rows, indices.contiguous(), y.view(-1).view(rows.dtype), rows.stride(0), T, R, W,
        ROWS=tile.rows, COLUMNS=tile.width, num_warps=tile.warps,
    )  # fmt: skip
    return y


@triton.jit
def _invert_kernel(
    indices_ptr,  # (T,) int64
    source_ptr,  # (rows,) int64
    T,
    rows,
    BLOCK: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(indices_ptr + t, mask=t < T, other=-1)
    tl.store(source_ptr + row, t, mask=(row >= 0) & (row < rows))


def pad(x: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
    """x (T, ...), indices (T,) -> (rows, ...), zero elsewhere: each row fetches what belongs there, or zeros."""
    source = indices.new_full((rows,), -1)
    T = indices.shape[0]
    programs = launch.cdiv(T, launch.LINE["BLOCK"])
    launch.start(_invert_kernel, (programs,), x, indices.contiguous(), source, T, rows, **launch.LINE)
    return unpad(x, source)


@triton.jit
def _tiles_kernel(
    cu_seqlens_ptr,  # (B + 1,)
    tiles_ptr,  # (N, 2): text, first row
    B,
    T,
    N,
    rows,
    BLOCK: tl.constexpr,
):
    text = tl.program_id(0)  # text B is none: it takes the entries that are left
    before = tl.zeros((BLOCK,), tl.int64)
    for first in range(0, text, BLOCK):
        other = first + tl.arange(0, BLOCK)
        start, end = bounds(cu_seqlens_ptr, other, T, other < text)
        before += tl.cdiv(end - start, rows)
    slot = tl.sum(before, axis=0)
    start, end = bounds(cu_seqlens_ptr, text, T, text < B)
    count = tl.where(text < B, tl.cdiv(end - start, rows), N)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        entry = tiles_ptr + (slot + i) * 2
        mask = (i < count) & (slot + i < N)
        tl.store(entry, tl.where(text < B, text, -1), mask=mask)
        tl.store(entry + 1, tl.where(text < B, i * rows, 0), mask=mask)


def tiles(cu_seqlens: torch.Tensor, total: int, rows: int) -> torch.Tensor:
    """cu_seqlens (B + 1,) -> (total // rows + B, 2) int32 of (text, first row), unused entries (-1, 0)."""
    B = cu_seqlens.shape[0] - 1
    entries = cu_seqlens.new_empty((total // rows + B, 2))
    launch.start(
        _tiles_kernel, (B + 1,), cu_seqlens, cu_seqlens.contiguous(), entries, B, total, entries.shape[0], rows,
        **launch.LINE,
    )  # fmt: skip
    return entries
