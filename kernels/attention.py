"""Attention inside packed texts, rotary inside, global or windowed. Reference: modernbert_fast/reference/attention.py.

A program takes BLOCK_M queries of one text and head and loops over the blocks of keys that they may see: all of the
text, or the three blocks of 64 that a window of 64 reaches. The tile schedule of the batch says where texts are.
Forward: reads 3HD and writes HD elements a token; 4 x keys x HD flops. Backward: a pass for dq and one for dk and dv,
each of which computes the probabilities again, so that no sum has an order that varies: reads 5HD and writes 3HD
elements; 14 x keys x HD flops.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from modernbert_fast.kernels import launch, rope
from modernbert_fast.kernels.rope import rotate, table_rows
from modernbert_fast.kernels.texts import clear, own_rows

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _reach(first, start, end, window, BLOCK: tl.constexpr, STEP: tl.constexpr, IS_WINDOWED: tl.constexpr):
    """The rows that BLOCK rows from `first` may see, whole steps from the start of the text."""
    low, high = start, end
    if IS_WINDOWED:
        low += tl.maximum(first - start - window, 0) // STEP * STEP
        high = tl.minimum(first + BLOCK + tl.minimum(window, end - start), end)
    return low, high


@triton.jit
def _load(base, t, d, stride, in_text, D, EVEN: tl.constexpr):
    """(rows, columns) of a plane; zero beyond the text and the head."""
    mask = in_text[:, None]
    if not EVEN:
        mask = mask & (d < D)[None, :]
    return tl.load(base + t[:, None] * stride + d[None, :], mask=mask, other=0.0)


@triton.jit
def _load_halves(
    base, t, d, stride, in_text, HALF, positions_ptr, cos_ptr, sin_ptr, P, ROTATE: tl.constexpr, EVEN: tl.constexpr
):
    """Both halves (rows, HALF) of q or k, rotated in fp32 and rounded to the dtype of the products."""
    a = _load(base, t, d, stride, in_text, HALF, EVEN)
    b = _load(base + HALF, t, d, stride, in_text, HALF, EVEN)
    if ROTATE:
        cos, sin = table_rows(positions_ptr, cos_ptr, sin_ptr, t, d, in_text, d < HALF, P, HALF)
        turned_a, turned_b = rotate(a.to(tl.float32), b.to(tl.float32), cos, sin)
        a, b = turned_a.to(a.dtype), turned_b.to(b.dtype)
    return a, b


@triton.jit
def _keys(attended_ptr, t, end):
    """Which rows are keys: those of the text, and of them the ones that are attended to."""
    keys = t < end
    if attended_ptr is not None:
        keys = keys & (tl.load(attended_ptr + t, mask=keys, other=0) != 0)
    return keys


@triton.jit
def _seen(columns_ptr, t_m, t_n, in_m, in_n, window, IS_WINDOWED: tl.constexpr):
    """(M, N): which rows of the text see each other; distance by column where the mask has holes."""
    seen = in_m[:, None] & in_n[None, :]
    if IS_WINDOWED:
        at_m, at_n = t_m.to(tl.int32), t_n.to(tl.int32)
        if columns_ptr is not None:
            at_m = tl.load(columns_ptr + t_m, mask=in_m, other=0)
            at_n = tl.load(columns_ptr + t_n, mask=in_n, other=0)
        seen = seen & (tl.abs(at_m[:, None] - at_n[None, :]) <= window)
    return seen


@triton.jit
def _store_halves(base, t, d, a, b, in_text, HALF, positions_ptr, cos_ptr, sin_ptr, P, stride):
    """Turns fp32 halves back by the angle, if there is one, and stores them."""
    if positions_ptr is not None:
        cos, sin = table_rows(positions_ptr, cos_ptr, sin_ptr, t, d, in_text, d < HALF, P, HALF)
        a, b = rotate(a, b, cos, -sin)
    mask = in_text[:, None] & (d < HALF)[None, :]
    place = base + t[:, None] * stride + d[None, :]
    tl.store(place, a.to(base.dtype.element_ty), mask=mask)
    tl.store(place + HALF, b.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _fwd_kernel(
    q_ptr,  # (T, H, D)
    k_ptr,  # (T, H, D), rotated unless ROTATE_K
    v_ptr,  # (T, H, D)
    o_ptr,  # (T, H, D)
    lse_ptr,  # (H, T) fp32
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh,
    tiles_ptr,  # (N, 2): text, first row
    cu_seqlens_ptr,  # (B + 1,)
    positions_ptr,  # (T,) or None
    cos_ptr,  # (P, D / 2) fp32 or None
    sin_ptr,
    columns_ptr,  # (T,) or None
    attended_ptr,  # (T,) uint8 or None
    T, B, P, H, D, window, scale,
    IS_WINDOWED: tl.constexpr, ROTATE_Q: tl.constexpr, ROTATE_K: tl.constexpr, TILE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_HALF: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    start, end, first, _ = own_rows(tiles_ptr, cu_seqlens_ptr, B, T, TILE, BLOCK_M)
    head = tl.program_id(1).to(tl.int64)
    clear(o_ptr + head * D, H * D, D, cu_seqlens_ptr, B, T, BLOCK_M, BLOCK_D)
    clear(lse_ptr + head * T, 1, 1, cu_seqlens_ptr, B, T, BLOCK_M, 1)
    if first >= end:
        return
    t_m = first.to(tl.int64) + tl.arange(0, BLOCK_M)
    in_m = t_m < end
    d, half = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_HALF)
    q1, q2 = _load_halves(
        q_ptr + head * stride_qh, t_m, half, stride_qt, in_m, D // 2, positions_ptr, cos_ptr, sin_ptr, P, ROTATE_Q, EVEN
    )
    to_log2 = scale * LOG2E
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    low, high = _reach(first, start, end, window, BLOCK_M, BLOCK_N, IS_WINDOWED)
    for n in range(low, high, BLOCK_N):
        t_n = tl.arange(0, BLOCK_N).to(tl.int64) + n
        in_n = _keys(attended_ptr, t_n, end)
        k1, k2 = _load_halves(
            k_ptr + head * stride_kh, t_n, half, stride_kt, in_n, D // 2, positions_ptr, cos_ptr, sin_ptr, P, ROTATE_K,
            EVEN,
        )  # fmt: skip
        s = tl.dot(q1, tl.trans(k1), input_precision=PRECISION)
        s = tl.dot(q2, tl.trans(k2), s, input_precision=PRECISION) * to_log2
        s = tl.where(_seen(columns_ptr, t_m, t_n, in_m, in_n, window, IS_WINDOWED), s, float("-inf"))
        higher = tl.maximum(peak, tl.max(s, axis=1))
        # Rows that have seen nothing yet keep a peak of -inf: nothing minus nothing is not a number.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp2(peak - base)
        p = tl.exp2(s - base[:, None])
        total = total * shrink + tl.sum(p, axis=1)
        v = _load(v_ptr + head * stride_vh, t_n, d, stride_vt, in_n, D, EVEN)
        o = tl.dot(p.to(v.dtype), v, o * shrink[:, None], input_precision=PRECISION)
        peak = higher
    if attended_ptr is not None:  # a row that sees nothing: zeros, and a logarithm of -inf
        total = tl.where(total == 0, 1.0, total)
    o *= tl.div_rn(1.0, total)[:, None]
    mask = in_m[:, None] & (d < D)[None, :]
    place = o_ptr + (t_m[:, None] * H + head) * D + d[None, :]
    tl.store(place, o.to(o_ptr.dtype.element_ty), mask=mask)
    tl.store(lse_ptr + head * T + t_m, (peak + tl.log2(total)) * LN2, mask=in_m)


def forward(
    qkv: torch.Tensor, cu_seqlens: torch.Tensor, positions: Any, cos: Any, sin: Any, columns: Any, attended: Any,
    tiles: torch.Tensor, max_seqlen: int, window: int, scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """qkv (T, 3, H, D) -> o (T, H, D), lse (H, T) natural log, fp32."""
    T, _, H, D = qkv.shape
    q, k, v = launch.inner_dense(qkv).unbind(1)
    turned = positions is not None and not launch.rotates_inside("fwd", qkv, window >= 0)
    if turned:
        k = rope.forward(qkv[:, 1:2], positions, cos, sin)[:, 0]
    o = launch.result(qkv, (T, H, D), tiles)
    lse = launch.result(qkv, (H, T), tiles, torch.float32)
    tile = launch.attention("fwd", qkv, window >= 0)
    shared, options = _shared(qkv, cu_seqlens, positions, cos, sin, columns, attended, tiles, window, scale)
    launch.start(
        _fwd_kernel, (_programs(tiles, tile["BLOCK_M"]), H), qkv, q, k, v, o, lse, *_strides(q, k, v), *shared,
        ROTATE_Q=positions is not None, ROTATE_K=positions is not None and not turned, **options, **tile,
    )  # fmt: skip
    return o, lse


def _programs(tiles: torch.Tensor, block: int) -> int:
    return tiles.shape[0] * max(launch.TILE // block, 1)


def _shared(qkv: Any, cu_seqlens: Any, positions: Any, cos: Any, sin: Any, columns: Any, attended: Any, tiles: Any,
            window: int, scale: float) -> tuple[tuple, dict[str, Any]]:  # fmt: skip
    """What every kernel of this file takes after its tensors."""
    T, _, H, D = qkv.shape
    keys = None if attended is None else attended.view(torch.uint8)
    tensors = (tiles, cu_seqlens, positions, cos, sin, columns, keys)
    rows = 0 if cos is None else cos.shape[0]
    sizes = (T, cu_seqlens.shape[0] - 1, rows, H, D, min(window, 2**30), scale)
    return (*map(launch.dense, tensors), *sizes), {
        "IS_WINDOWED": window >= 0,
        "TILE": launch.TILE,
        "BLOCK_D": launch.power_of_two(D, 16),
        "BLOCK_HALF": launch.power_of_two(D // 2, 16),
        "EVEN": D // 2 >= 16 and D & (D - 1) == 0,
        "PRECISION": "ieee" if qkv.dtype == torch.float32 else "tf32",
    }


@triton.jit
def _bwd_q_kernel(
    do_ptr,  # (T, H, D)
    o_ptr,  # (T, H, D)
    q_ptr,  # (T, H, D), rotated unless ROTATE
    k_ptr,  # (T, H, D), rotated unless ROTATE
    v_ptr,  # (T, H, D)
    lse_ptr,  # (H, T) fp32
    delta_ptr,  # (H, T) fp32: do . o, for the other pass
    dq_ptr,  # (T, H, D), the first plane of (T, 3, H, D)
    stride_dot, stride_doh, stride_ot, stride_oh, stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh,
    stride_dqt, stride_dqh,
    tiles_ptr,  # (N, 2): text, first row
    cu_seqlens_ptr,  # (B + 1,)
    positions_ptr,  # (T,) or None
    cos_ptr,  # (P, D / 2) fp32 or None
    sin_ptr,
    columns_ptr,  # (T,) or None
    attended_ptr,  # (T,) uint8 or None
    T, B, P, H, D, window, scale,
    IS_WINDOWED: tl.constexpr, ROTATE: tl.constexpr, TILE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_HALF: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    start, end, first, _ = own_rows(tiles_ptr, cu_seqlens_ptr, B, T, TILE, BLOCK_M)
    head = tl.program_id(1).to(tl.int64)
    for plane in tl.static_range(3):  # dk and dv lie behind dq; their own pass has no registers to spare
        clear(dq_ptr + (plane * H + head) * D, stride_dqt, D, cu_seqlens_ptr, B, T, BLOCK_M, BLOCK_D)
    if first >= end:
        return
    t_m = first.to(tl.int64) + tl.arange(0, BLOCK_M)
    in_m = t_m < end
    d, half, HALF = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_HALF), D // 2
    q1, q2 = _load_halves(
        q_ptr + head * stride_qh, t_m, half, stride_qt, in_m, HALF, positions_ptr, cos_ptr, sin_ptr, P, ROTATE, EVEN
    )
    do = _load(do_ptr + head * stride_doh, t_m, d, stride_dot, in_m, D, EVEN)
    o = _load(o_ptr + head * stride_oh, t_m, d, stride_ot, in_m, D, EVEN)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), axis=1)
    tl.store(delta_ptr + head * T + t_m, delta, mask=in_m)
    do = do.to(q1.dtype)
    lse = tl.load(lse_ptr + head * T + t_m, mask=in_m, other=0.0) * LOG2E
    dq1 = tl.zeros((BLOCK_M, BLOCK_HALF), tl.float32)
    dq2 = tl.zeros((BLOCK_M, BLOCK_HALF), tl.float32)
    low, high = _reach(first, start, end, window, BLOCK_M, BLOCK_N, IS_WINDOWED)
    for n in range(low, high, BLOCK_N):
        t_n = tl.arange(0, BLOCK_N).to(tl.int64) + n
        in_n = _keys(attended_ptr, t_n, end)
        k1, k2 = _load_halves(
            k_ptr + head * stride_kh, t_n, half, stride_kt, in_n, HALF, positions_ptr, cos_ptr, sin_ptr, P, ROTATE, EVEN
        )
        v = _load(v_ptr + head * stride_vh, t_n, d, stride_vt, in_n, D, EVEN)
        s = tl.dot(q1, tl.trans(k1), input_precision=PRECISION)
        s = tl.dot(q2, tl.trans(k2), s, input_precision=PRECISION) * (scale * LOG2E)
        seen = _seen(columns_ptr, t_m, t_n, in_m, in_n, window, IS_WINDOWED)
        p = tl.where(seen, tl.exp2(s - lse[:, None]), 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = (p * (dp - delta[:, None])).to(k1.dtype)
        dq1 = tl.dot(ds, k1, dq1, input_precision=PRECISION)
        dq2 = tl.dot(ds, k2, dq2, input_precision=PRECISION)
    _store_halves(
        dq_ptr + head * stride_dqh, t_m, half, dq1 * scale, dq2 * scale, in_m, HALF, positions_ptr, cos_ptr, sin_ptr, P,
        stride_dqt,
    )  # fmt: skip


@triton.jit
def _bwd_kv_kernel(
    do_ptr,  # (T, H, D)
    q_ptr,  # (T, H, D), rotated unless ROTATE
    k_ptr,  # (T, H, D), rotated unless ROTATE
    v_ptr,  # (T, H, D)
    lse_ptr,  # (H, T) fp32
    delta_ptr,  # (H, T) fp32
    dk_ptr,  # (T, H, D)
    dv_ptr,  # (T, H, D)
    stride_dot, stride_doh, stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_dkt, stride_dkh,
    tiles_ptr,  # (N, 2): text, first row
    cu_seqlens_ptr,  # (B + 1,)
    positions_ptr,  # (T,) or None
    cos_ptr,  # (P, D / 2) fp32 or None
    sin_ptr,
    columns_ptr,  # (T,) or None
    attended_ptr,  # (T,) uint8 or None
    T, B, P, H, D, window, scale,
    IS_WINDOWED: tl.constexpr, ROTATE: tl.constexpr, TILE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_HALF: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    start, end, first, _ = own_rows(tiles_ptr, cu_seqlens_ptr, B, T, TILE, BLOCK_N)
    if first >= end:
        return
    head = tl.program_id(1).to(tl.int64)
    t_n = first.to(tl.int64) + tl.arange(0, BLOCK_N)
    in_n = t_n < end
    d, half, HALF = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_HALF), D // 2
    k1, k2 = _load_halves(
        k_ptr + head * stride_kh, t_n, half, stride_kt, in_n, HALF, positions_ptr, cos_ptr, sin_ptr, P, ROTATE, EVEN
    )
    v = _load(v_ptr + head * stride_vh, t_n, d, stride_vt, in_n, D, EVEN)
    dk1 = tl.zeros((BLOCK_N, BLOCK_HALF), tl.float32)
    dk2 = tl.zeros((BLOCK_N, BLOCK_HALF), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    low, high = _reach(first, start, end, window, BLOCK_N, BLOCK_M, IS_WINDOWED)
    for m in range(low, high, BLOCK_M):
        t_m = tl.arange(0, BLOCK_M).to(tl.int64) + m
        in_m = t_m < end
        q1, q2 = _load_halves(
            q_ptr + head * stride_qh, t_m, half, stride_qt, in_m, HALF, positions_ptr, cos_ptr, sin_ptr, P, ROTATE, EVEN
        )
        do = _load(do_ptr + head * stride_doh, t_m, d, stride_dot, in_m, D, EVEN).to(k1.dtype)
        lse = tl.load(lse_ptr + head * T + t_m, mask=in_m, other=0.0) * LOG2E
        delta = tl.load(delta_ptr + head * T + t_m, mask=in_m, other=0.0)
        s = tl.dot(k1, tl.trans(q1), input_precision=PRECISION)
        s = tl.dot(k2, tl.trans(q2), s, input_precision=PRECISION) * (scale * LOG2E)
        seen = _seen(columns_ptr, t_n, t_m, in_n, in_m, window, IS_WINDOWED)
        p = tl.where(seen, tl.exp2(s - lse[None, :]), 0.0)  # (N, M)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        ds = (p * (dp - delta[None, :])).to(q1.dtype)
        dk1 = tl.dot(ds, q1, dk1, input_precision=PRECISION)
        dk2 = tl.dot(ds, q2, dk2, input_precision=PRECISION)
    if attended_ptr is not None:  # sums of a row that nobody sees say nothing, and reach no other row
        is_key = _keys(attended_ptr, t_n, end)[:, None]
        dk1, dk2, dv = tl.where(is_key, dk1, 0.0), tl.where(is_key, dk2, 0.0), tl.where(is_key, dv, 0.0)
    _store_halves(
        dk_ptr + head * stride_dkh, t_n, half, dk1 * scale, dk2 * scale, in_n, HALF, positions_ptr, cos_ptr, sin_ptr, P,
        stride_dkt,
    )  # fmt: skip
    place = dv_ptr + head * stride_dkh + t_n[:, None] * stride_dkt + d[None, :]
    tl.store(place, dv.to(dv_ptr.dtype.element_ty), mask=in_n[:, None] & (d < D)[None, :])


def backward(
    do: torch.Tensor, qkv: torch.Tensor, o: torch.Tensor, lse: torch.Tensor, cu_seqlens: torch.Tensor, positions: Any,
    cos: Any, sin: Any, columns: Any, attended: Any, tiles: torch.Tensor, max_seqlen: int, window: int, scale: float,
) -> torch.Tensor:  # fmt: skip
    """do (T, H, D) -> dqkv (T, 3, H, D); probabilities are computed again."""
    H = qkv.shape[2]
    do, o, lse = launch.inner_dense(do), launch.inner_dense(o), lse.contiguous()
    q, k, v = launch.inner_dense(qkv).unbind(1)
    turned = positions is not None and not launch.rotates_inside("bwd", qkv, window >= 0)
    if turned:
        q, k = rope.forward(qkv[:, :2], positions, cos, sin).unbind(1)
    delta, dqkv = torch.empty_like(lse), launch.result(qkv, qkv.shape, tiles)
    dq, dk, dv = dqkv.unbind(1)
    shared, options = _shared(qkv, cu_seqlens, positions, cos, sin, columns, attended, tiles, window, scale)
    options["ROTATE"] = positions is not None and not turned
    tile = launch.attention("dq", qkv, window >= 0)
    launch.start(
        _bwd_q_kernel, (_programs(tiles, tile["BLOCK_M"]), H), qkv, do, o, q, k, v, lse, delta, dq,
        *_strides(do, o, q, k, v, dq), *shared, **options, **tile,
    )  # fmt: skip
    tile = launch.attention("dkv", qkv, window >= 0)
    launch.start(
        _bwd_kv_kernel, (_programs(tiles, tile["BLOCK_N"]), H), qkv, do, q, k, v, lse, delta, dk, dv,
        *_strides(do, q, k, v, dk), *shared, **options, **tile,
    )  # fmt: skip
    return dqkv


def _strides(*tensors: torch.Tensor) -> list[int]:
    """Steps between tokens and between heads of each (T, H, D)."""
    return [step for x in tensors for step in x.stride()[:2]]
