"""First row or mean of each packed text, of unit length if asked. Reference: modernbert_fast/reference/pooling.py.

A program a text. Forward: "cls" reads a row of C a text, "mean" every row, one flop an element; writes a row a text.
Backward: writes every row. Bounds are held inside [0, T].
"""

from typing import Any

import torch
import triton
import triton.language as tl

from modernbert_fast.kernels import launch
from modernbert_fast.kernels.texts import bounds, clear

SMALLEST_NORM = tl.constexpr(1e-12)


@triton.jit
def _fwd_kernel(
    x_ptr,  # (T, C)
    cu_seqlens_ptr,  # (B + 1,)
    y_ptr,  # (B, C)
    norm_ptr,  # (B,) fp32
    stride_xt,
    T,
    C,
    IS_MEAN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    text = tl.program_id(0).to(tl.int64)
    start, end = bounds(cu_seqlens_ptr, text, T)
    if not IS_MEAN:
        end = tl.minimum(end, start + 1)
    c = tl.arange(0, BLOCK_C)
    total = tl.zeros((ROWS, BLOCK_C), tl.float32)
    for first in range(start, end, ROWS):
        t = tl.arange(0, ROWS).to(tl.int64) + first
        mask = (t < end)[:, None] & (c < C)[None, :]
        total += tl.load(x_ptr + t[:, None] * stride_xt + c, mask=mask, other=0.0).to(tl.float32)
    y = tl.div_rn(tl.sum(total, axis=0), tl.maximum(end - start, 1) * 1.0)
    norm = tl.full((), 1.0, tl.float32)
    if NORMALIZE:
        norm = tl.sqrt_rn(tl.sum(y * y, axis=0))
        norm = tl.where(norm < SMALLEST_NORM, SMALLEST_NORM, norm)  # a NaN stays one
        y = tl.div_rn(y, norm)
    tl.store(y_ptr + text * C + c, y.to(y_ptr.dtype.element_ty), mask=c < C)
    tl.store(norm_ptr + text, norm)


def forward(x: torch.Tensor, cu_seqlens: torch.Tensor, mode: str, normalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """x (T, C) -> y (B, C), norm (B,) the length each row was divided by (ones without normalize)."""
    x = launch.inner_dense(x)
    B, (T, C) = cu_seqlens.shape[0] - 1, x.shape
    y, norm = x.new_empty((B, C)), x.new_empty(B, dtype=torch.float32)
    launch.start(
        _fwd_kernel, (B,), x, x, cu_seqlens.contiguous(), y, norm, x.stride(0), T, C,
        IS_MEAN=mode == "mean", NORMALIZE=normalize, **_tile(C),
    )  # fmt: skip
    return y, norm


def _tile(C: int) -> dict[str, Any]:
    tile = launch.rows(C)
    return {"ROWS": tile.rows, "BLOCK_C": tile.width, "num_warps": tile.warps}


@triton.jit
def _bwd_kernel(
    dy_ptr,  # (B, C)
    y_ptr,  # (B, C)
    norm_ptr,  # (B,) fp32
    cu_seqlens_ptr,  # (B + 1,)
    dx_ptr,  # (T, C)
    stride_dyb,
    stride_yb,
    T,
    C,
    IS_MEAN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    text = tl.program_id(0).to(tl.int64)
    start, end = bounds(cu_seqlens_ptr, text, T)
    clear(dx_ptr, C, C, cu_seqlens_ptr, tl.num_programs(0), T, ROWS, BLOCK_C)
    c = tl.arange(0, BLOCK_C)
    dpooled = tl.load(dy_ptr + text * stride_dyb + c, mask=c < C, other=0.0).to(tl.float32)
    if NORMALIZE:
        y = tl.load(y_ptr + text * stride_yb + c, mask=c < C, other=0.0).to(tl.float32)
        dpooled = tl.div_rn(dpooled - y * tl.sum(dpooled * y, axis=0), tl.load(norm_ptr + text))
    if IS_MEAN:
        dpooled = tl.div_rn(dpooled, tl.maximum(end - start, 1) * 1.0)
    for first in range(start, end, ROWS):
        t = tl.arange(0, ROWS).to(tl.int64) + first
        dx = tl.zeros((ROWS, BLOCK_C), tl.float32) + dpooled[None, :]
        if not IS_MEAN:
            dx = tl.where((t == start)[:, None], dx, 0.0)
        mask = (t < end)[:, None] & (c < C)[None, :]
        tl.store(dx_ptr + t[:, None] * C + c, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def backward(
    dy: torch.Tensor, y: torch.Tensor, norm: torch.Tensor, cu_seqlens: torch.Tensor, mode: str, normalize: bool, T: int
) -> torch.Tensor:
    """dy, y (B, C) -> dx (T, C)."""
    dy, y = launch.inner_dense(dy), launch.inner_dense(y)
    B, C = y.shape
    dx = launch.result(y, (T, C), y)
    launch.start(
        _bwd_kernel, (B,), y, dy, y, norm.contiguous(), cu_seqlens.contiguous(), dx, dy.stride(0), y.stride(0), T, C,
        IS_MEAN=mode == "mean", NORMALIZE=normalize, **_tile(C),
    )  # fmt: skip
    return dx
