"""Layer norm, with a residual add, with the embedding gather. Reference: modernbert_fast/reference/layer_norm.py.

Forward: reads x (and the residual), writes y (and the sum): 2 or 4 passes of T x C elements, about 10 flops each.
Backward: reads dy, x (and dsum), writes dx: 3 or 4 passes, about 16 flops, and two partial rows of C a program.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from modernbert_fast.kernels import launch


@triton.jit
def _centred(x, in_tile, C):
    """Two passes and one correction: x (ROWS, BLOCK_C) fp32 -> x - mean, zero outside the tile; mean (ROWS, 1)."""
    mean = tl.div_rn(tl.sum(x, axis=1, keep_dims=True), C)
    centred = tl.where(in_tile, x - mean, 0.0)
    correction = tl.div_rn(tl.sum(centred, axis=1, keep_dims=True), C)
    return tl.where(in_tile, centred - correction, 0.0), mean + correction


@triton.jit
def _fwd_kernel(
    x_ptr,  # (T, C), or the table (V, C) with ids
    ids_ptr,  # (T,) or None
    residual_ptr,  # (T, C) or None
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    y_ptr,  # (T, C)
    sum_ptr,  # (T, C) with a residual
    mean_ptr,  # (T,) fp32
    rstd_ptr,  # (T,) fp32
    stride_xt,
    stride_rt,
    T,
    V,
    C,
    eps,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    in_tile = (t < T)[:, None] & (c < C)[None, :]
    row, known = t, in_tile
    if ids_ptr is not None:
        row = tl.load(ids_ptr + t, mask=t < T, other=0).to(tl.int64)
        known = in_tile & ((row >= 0) & (row < V))[:, None]
    x = tl.load(x_ptr + row[:, None] * stride_xt + c, mask=known, other=0.0).to(tl.float32)
    place = t[:, None] * C + c
    if residual_ptr is not None:
        x += tl.load(residual_ptr + t[:, None] * stride_rt + c, mask=in_tile, other=0.0).to(tl.float32)
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + place, rounded, mask=in_tile)
        x = rounded.to(tl.float32)  # what is normed is what is stored
    centred, mean = _centred(x, in_tile, C * 1.0)
    variance = tl.div_rn(tl.sum(centred * centred, axis=1, keep_dims=True), C * 1.0)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    y = centred * rstd
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=in_tile)
    tl.store(mean_ptr + t[:, None], mean, mask=(t < T)[:, None])
    tl.store(rstd_ptr + t[:, None], rstd, mask=(t < T)[:, None])


def _forward(x: torch.Tensor, ids: Any, residual: Any, weight: Any, bias: Any, eps: float) -> tuple[torch.Tensor, ...]:
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    T, (V, C) = (x if ids is None else ids).shape[0], x.shape
    x, residual = launch.inner_dense(x), None if residual is None else launch.inner_dense(residual)
    y = x.new_empty((T, C), dtype=dtype)
    total = x.new_empty((T, C) if residual is not None else 0, dtype=dtype)
    mean, rstd = x.new_empty(T, dtype=torch.float32), x.new_empty(T, dtype=torch.float32)
    tile = launch.rows(C)
    launch.start(
        _fwd_kernel, (launch.cdiv(T, tile.rows),), x,
        x, launch.dense(ids), residual, launch.dense(weight), launch.dense(bias), y, total, mean, rstd,
        x.stride(0), 0 if residual is None else residual.stride(0), T, V, C, eps,
        ROWS=tile.rows, BLOCK_C=tile.width, num_warps=tile.warps,
    )  # fmt: skip
    return y, total, mean, rstd


def forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """x, residual (T, C) -> y (T, C), sum (T, C) or (0,), mean (T,), rstd (T,)."""
    return _forward(x, None, residual, weight, bias, eps)


def embed_forward(
    ids: torch.Tensor, table: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, ...]:
    """ids (T,), table (V, C) -> y (T, C), mean (T,), rstd (T,). An id outside the table gathers zeros."""
    y, _, mean, rstd = _forward(table, ids, None, weight, bias, eps)
    return y, mean, rstd


@triton.jit
def _bwd_kernel(
    dy_ptr,  # (T, C)
    dsum_ptr,  # (T, C) or None
    x_ptr,  # (T, C) as it was normed
    weight_ptr,  # (C,) or None
    mean_ptr,  # (T,) fp32
    rstd_ptr,  # (T,) fp32
    dx_ptr,  # (T, C)
    dweight_ptr,  # (programs, C) fp32 partial sums, or None
    dbias_ptr,  # (programs, C) fp32 partial sums, or None
    stride_dyt,
    stride_dst,
    stride_xt,
    T,
    C,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c = tl.arange(0, BLOCK_C)
    in_row = c < C
    width = C * 1.0
    dweight = tl.zeros((ROWS, BLOCK_C), tl.float32)
    dbias = tl.zeros((ROWS, BLOCK_C), tl.float32)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + c, mask=in_row, other=0.0).to(tl.float32)[None, :]
    for first in range(tl.program_id(0) * ROWS, T, tl.num_programs(0) * ROWS):
        t = tl.arange(0, ROWS).to(tl.int64) + first
        in_tile = (t < T)[:, None] & in_row[None, :]
        x = tl.load(x_ptr + t[:, None] * stride_xt + c, mask=in_tile, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + t[:, None] * stride_dyt + c, mask=in_tile, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + t, mask=t < T, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + t, mask=t < T, other=0.0)[:, None]
        centred = tl.where(in_tile, x - mean, 0.0)
        centred -= tl.div_rn(tl.sum(centred, axis=1, keep_dims=True), width)
        normed = tl.where(in_tile, centred * rstd, 0.0)
        dweight += dy * normed
        dbias += dy
        dnormed = dy
        if weight_ptr is not None:
            dnormed = dy * weight
        along = tl.div_rn(tl.sum(dnormed * normed, axis=1, keep_dims=True), width)
        dx = (dnormed - tl.div_rn(tl.sum(dnormed, axis=1, keep_dims=True), width) - normed * along) * rstd
        if dsum_ptr is not None:
            dx += tl.load(dsum_ptr + t[:, None] * stride_dst + c, mask=in_tile, other=0.0).to(tl.float32)
        tl.store(dx_ptr + t[:, None] * C + c, dx.to(dx_ptr.dtype.element_ty), mask=in_tile)
    partial = tl.program_id(0).to(tl.int64) * C + c
    if dweight_ptr is not None:
        tl.store(dweight_ptr + partial, tl.sum(dweight, axis=0), mask=in_row)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + partial, tl.sum(dbias, axis=0), mask=in_row)


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
    T, C = x.shape
    dy, x = launch.inner_dense(dy), launch.inner_dense(x)
    dsum = None if dsum is None else launch.inner_dense(dsum)
    tile = launch.rows(C)
    programs = launch.persistent(x, launch.cdiv(T, tile.rows))
    dx = x.new_empty((T, C))
    dweight, dbias = (mean.new_empty((programs, C)) if has else None for has in (weight is not None, has_bias))
    # dy * weight minus its mean is nothing where there is one column: the product is rounded before.
    launch.start(
        _bwd_kernel, (programs,), x,
        dy, dsum, x, launch.dense(weight), launch.dense(mean), launch.dense(rstd), dx, dweight, dbias,
        dy.stride(0), 0 if dsum is None else dsum.stride(0), x.stride(0), T, C,
        ROWS=tile.rows, BLOCK_C=tile.width, num_warps=tile.warps, **launch.APART,
    )  # fmt: skip
    return dx, *(mean.new_empty(0) if partial is None else partial.sum(0) for partial in (dweight, dbias))
