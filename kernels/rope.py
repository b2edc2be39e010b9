"""Rotates q and k of packed qkv by their positions, half-split form. Reference: modernbert_fast/reference/rope.py.

Reads and writes 3 x H x D elements a token and reads D table entries, 3 flops an element. Attention rotates inside;
this serves ops.rope, and the global layers, where a key is met too often to be turned at each meeting. Backward: the
same kernel with -sin.
"""

import torch
import triton
import triton.language as tl

from modernbert_fast.kernels import launch


@triton.jit
def table_rows(positions_ptr, cos_ptr, sin_ptr, t, d, in_text, in_half, P, HALF):
    """cos, sin (rows, halves) fp32 of tokens t; positions are held inside the table, and t inside in_text."""
    p = tl.load(positions_ptr + t, mask=in_text, other=0).to(tl.int64)
    p = tl.minimum(tl.maximum(p, 0), P - 1)
    place = p[:, None] * HALF + d[None, :]
    mask = in_text[:, None] & in_half[None, :]
    return tl.load(cos_ptr + place, mask=mask, other=1.0), tl.load(sin_ptr + place, mask=mask, other=0.0)


@triton.jit
def rotate(first, second, cos, sin):
    """Both halves (rows, halves) fp32, turned by the angle."""
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _fwd_kernel(
    x_ptr,  # (T, planes, H, D): the third plane passes as it is
    positions_ptr,  # (T,)
    cos_ptr,  # (P, D / 2) fp32
    sin_ptr,  # (P, D / 2) fp32
    y_ptr,  # (T, planes, H, D)
    stride_xt,
    stride_xp,
    stride_xh,
    T,
    P,
    H,
    HALF,
    PLANES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Rows of D in the order of y; only the first is divided in 64 bits.
    per_token = PLANES * H
    first = tl.program_id(0).to(tl.int64) * ROWS
    token = first // per_token
    row = (first - token * per_token).to(tl.int32) + tl.arange(0, ROWS)
    t = token + row // per_token
    plane, head = (row % per_token) // H, row % H
    d = tl.arange(0, BLOCK_D)
    in_text, in_half = t < T, d < HALF
    mask = in_text[:, None] & in_half[None, :]
    source = x_ptr + (t * stride_xt + plane.to(tl.int64) * stride_xp + head.to(tl.int64) * stride_xh)[:, None] + d
    a, b = tl.load(source, mask=mask, other=0.0), tl.load(source + HALF, mask=mask, other=0.0)
    cos, sin = table_rows(positions_ptr, cos_ptr, sin_ptr, t, d, in_text, in_half, P, HALF)
    rotated_a, rotated_b = rotate(a.to(tl.float32), b.to(tl.float32), cos, sin)
    passes = (plane == 2)[:, None]
    target = y_ptr + (first + tl.arange(0, ROWS))[:, None] * (2 * HALF) + d
    tl.store(target, tl.where(passes, a, rotated_a.to(a.dtype)), mask=mask)
    tl.store(target + HALF, tl.where(passes, b, rotated_b.to(b.dtype)), mask=mask)


def forward(qkv: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """qkv (T, 3, H, D) -> (T, 3, H, D) with q and k rotated; of fewer planes (T, planes, H, D) every one is."""
    qkv = launch.inner_dense(qkv)
    T, planes, H, D = qkv.shape
    y = qkv.new_empty(qkv.shape)
    tile = launch.rope(D // 2)
    launch.start(
        _fwd_kernel, (launch.cdiv(T * planes * H, tile.rows),), qkv,
        qkv, positions.contiguous(), cos.contiguous(), sin.contiguous(), y,
        *qkv.stride()[:3], T, cos.shape[0], H, D // 2,
        PLANES=planes, ROWS=tile.rows, BLOCK_D=tile.width, num_warps=tile.warps,
    )  # fmt: skip
    return y
