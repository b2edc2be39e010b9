"""Late-interaction score of ragged queries and documents. Reference: modernbert_fast/reference/maxsim.py.

Forward: a program for each pair of a query and a document; reads both, 2 x query tokens x document tokens x D flops,
writes a winner for each query token if asked; pairs of one document follow each other, so that memory gives each
document once. int8 documents become the queries' dtype, which holds them exactly, on their way to the product.
Backward: a program for each query token gathers its winners, D elements a document; a program for each tile of a
document reads the winners and the queries, and sums what chose its tokens by a product with zeros and ones: as many
flops as forward. Nothing is added up in an order that varies.
"""

import torch
import triton
import triton.language as tl

from modernbert_fast.kernels import launch, padding
from modernbert_fast.kernels.texts import bounds, clear, number, ordered, own_rows

_ELEMENTS = 2**26  # of compressed documents that are integers at one time; plain torch takes about ten bytes for each


@triton.jit
def _load(x_ptr, t, stride, in_text, c, D):
    """Rows t, columns c (rows, columns); zero outside."""
    return tl.load(x_ptr + t[:, None] * stride + c[None, :], mask=in_text[:, None] & (c < D)[None, :], other=0.0)


@triton.jit
def _tile(x_ptr, first, end, stride, i, c, D):
    """Rows first + i of a text that ends at `end`, columns c (rows, columns); zero outside."""
    x_ptr += tl.cast(first, tl.int64) * stride
    return tl.load(x_ptr + (i[:, None] * stride + c[None, :]), mask=(i < end - first)[:, None] & (c < D), other=0.0)


@triton.jit
def _widened(d, dtype: tl.constexpr):
    """d in the dtype of the queries. int8 becomes float16 as the last bits of 1152 + d: conversions are slow."""
    if d.dtype == tl.int8 and dtype == tl.float16:
        return ((d.to(tl.uint8, bitcast=True) ^ 128).to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - 1152.0
    return d.to(dtype)


@triton.jit
def _tops(
    q_ptr, d_ptr, m, end_m, start_n, end_n, stride_qt, stride_dt, D,
    WINNERS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Of BLOCK_M query tokens from m on: the largest product with a document's token, and its row with WINNERS.

    NaN is larger than any number, and of equals the first row wins.
    """
    i_m, i_n, c = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    if WHOLE:
        q = _tile(q_ptr, m, end_m, stride_qt, i_m, c, D)
    # Every place of the tile keeps the best of what it has seen: they meet once, at the end.
    best = tl.full((BLOCK_N, BLOCK_M), float("-inf"), tl.float32)
    at = tl.full((BLOCK_N, BLOCK_M), -1, tl.int32)
    for n in range(start_n, end_n, BLOCK_N):
        if WHOLE:
            d = _widened(_tile(d_ptr, n, end_n, stride_dt, i_n, c, D), q.dtype)
            s = tl.dot(d, tl.trans(q), input_precision=PRECISION)
        else:
            s = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            for k in range(0, D, BLOCK_D):
                q = _tile(q_ptr, m, end_m, stride_qt, i_m, c + k, D)
                d = _widened(_tile(d_ptr, n, end_n, stride_dt, i_n, c + k, D), q.dtype)
                if PRECISION == "ieee":  # sums of sums are more accurate than one long sum: this keeps them apart
                    s += tl.dot(d, tl.trans(q), input_precision=PRECISION, max_num_imprecise_acc=BLOCK_D)
                else:
                    s = tl.dot(d, tl.trans(q), s, input_precision=PRECISION)
        in_n = (i_n < end_n - n)[:, None]
        if WINNERS:
            better = ((s > best) | ((s != s) & (best == best)) | (at < 0)) & in_n
            at = tl.where(better, (n + i_n)[:, None], at)
            best = tl.where(better, s, best)
        else:
            best = tl.maximum(best, tl.where(in_n, s, float("-inf")), propagate_nan=tl.PropagateNan.ALL)
    order = ordered(best)
    top = tl.max(order, axis=0)
    winner = tl.min(tl.where((order == top[None, :]) & (at >= 0), at, 2**31 - 1), axis=0)
    return number(top), winner


@triton.jit
def _fwd_kernel(
    q_ptr,  # (Tq, D)
    d_ptr,  # (Td, D)
    cu_queries_ptr,  # (Bq + 1,)
    cu_documents_ptr,  # (Bd + 1,)
    scores_ptr,  # (Bq, columns) fp32
    argmax_ptr,  # (Tq, columns) with WINNERS
    Tq, Td, Bq, columns,
    D: tl.constexpr, stride_qt: tl.constexpr, stride_dt: tl.constexpr, PAIRWISE: tl.constexpr, WINNERS: tl.constexpr,
    ABOVE: tl.constexpr, UP_TO: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    query, column = tl.program_id(0) % Bq, tl.program_id(0) // Bq
    start_m, end_m = bounds(cu_queries_ptr, query, Tq)
    start_n, end_n = bounds(cu_documents_ptr, query if PAIRWISE else column, Td)
    own = UP_TO is None or (end_m - start_m > ABOVE) & (end_m - start_m <= UP_TO)  # else it is another launch's
    UNIT: tl.constexpr = min(BLOCK_M, 32)
    i_m, part = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_M // UNIT)[:, None]
    score = tl.zeros((UNIT,), tl.float32)
    if UP_TO == BLOCK_M:
        top, _ = _tops(
            q_ptr, d_ptr, start_m, end_m, start_n, tl.where(own, end_n, start_n), stride_qt, stride_dt, D,
            WINNERS, BLOCK_M, BLOCK_N, BLOCK_D, WHOLE, PRECISION,
        )  # fmt: skip
        score += tl.where(i_m < end_m - start_m, top, 0.0)
    else:
        for m in tl.range(start_m, tl.where(own, end_m, start_m), BLOCK_M, disable_licm=True):
            top, winner = _tops(
                q_ptr, d_ptr, m, end_m, start_n, end_n, stride_qt, stride_dt, D,
                WINNERS, BLOCK_M, BLOCK_N, BLOCK_D, WHOLE, PRECISION,
            )  # fmt: skip
            # Added up UNIT tokens at a time, whatever BLOCK_M is: a score does not depend on it.
            parts = tl.reshape(tl.where(i_m < end_m - m, top, 0.0), (BLOCK_M // UNIT, UNIT))
            for i in tl.static_range(BLOCK_M // UNIT):
                score += tl.sum(tl.where(part == i, parts, 0.0), axis=0)
            if WINNERS:
                to = argmax_ptr + (m + i_m).to(tl.int64) * columns + column
                tl.store(to, tl.where(end_n > start_n, winner, -1), mask=i_m < end_m - m)
    tl.store(scores_ptr + query.to(tl.int64) * columns + column, tl.sum(score, axis=0), mask=own)


def forward(
    q: torch.Tensor,
    d: torch.Tensor,
    cu_queries: torch.Tensor,
    cu_documents: torch.Tensor,
    pairwise: bool,
    winners: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q (Tq, D), d (Td, D) -> scores (Bq, Bd) or (B,) fp32, argmax (Tq, Bd) or (Tq,), or (0,) without winners."""
    q, d = _alike(q, d)
    (Tq, D), Td, Bq = q.shape, d.shape[0], cu_queries.shape[0] - 1
    columns = () if pairwise else (cu_documents.shape[0] - 1,)
    scores = q.new_empty((Bq, *columns), dtype=torch.float32)
    argmax = q.new_full((Tq, *columns) if winners else (0,), -1, dtype=torch.int32)
    cu_queries, cu_documents = cu_queries.contiguous(), cu_documents.contiguous()
    for block in launch.maxsim_forward(q, d, Bq, winners):
        launch.start(
            _fwd_kernel, (scores.numel(),), q,
            q, d, cu_queries, cu_documents, scores, argmax,
            Tq, Td, Bq, *(columns or (1,)), D, q.stride(0), d.stride(0), PAIRWISE=pairwise, WINNERS=winners, **block,
        )  # fmt: skip
    return scores, argmax


def forward_compressed(
    q: torch.Tensor,
    codes: torch.Tensor,
    nearest: torch.Tensor,
    centroids: torch.Tensor,
    levels: torch.Tensor,
    cu_queries: torch.Tensor,
    cu_documents: torch.Tensor,
) -> torch.Tensor:
    """q (Tq, D), documents as decompress takes them -> scores (Bq, Bd).

    Documents become integers some at a time, whole ones. The host waits for their bounds, and makes them rise within T
    as the kernel does with its own.
    """
    T, step = nearest.shape[0], max(1, _ELEMENTS // max(q.shape[1], 1))
    bounds = cu_documents.cpu().clamp(0, T).cummax(0).values
    starts = torch.arange(0, max(T, 1), step, dtype=torch.int32)
    last = bounds.shape[0] - 1
    firsts = [*torch.searchsorted(bounds, starts).clamp(max=last).tolist(), last]
    rows = bounds[firsts].tolist()
    parts = []
    for first, last, start, stop in zip(firsts, firsts[1:], rows, rows[1:], strict=False):
        # A centroid that is not there would end every later call; on the host it is an error before.
        near = nearest[start:stop].long().clamp(0, centroids.shape[0] - 1)
        places = torch.cat((codes[start:stop] & 15, codes[start:stop] >> 4), dim=1)[:, : q.shape[1]]
        d = centroids[near] + levels[near].gather(1, places.long())
        parts.append(forward(q, d, cu_queries, cu_documents[first : last + 1] - start, False, False)[0])
    return torch.cat(parts, dim=1)


def _alike(q: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the wider of their dtypes, but for int8 documents, which the kernel widens; rows without gaps inside."""
    dtype = torch.promote_types(q.dtype, d.dtype)
    return launch.inner_dense(q.to(dtype)), launch.inner_dense(d if d.dtype == torch.int8 else d.to(dtype))


@triton.jit
def _bwd_q_kernel(
    dscores_ptr,  # (Bq, columns) fp32
    d_ptr,  # (Td, D)
    cu_queries_ptr,  # (Bq + 1,)
    tiles_ptr,  # (N, 2): query, row
    argmax_ptr,  # (Tq, columns)
    dq_ptr,  # (Tq, D)
    stride_sq, stride_sd, stride_dt, Tq, Td, Bq, columns, D,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    start, end, t, query = own_rows(tiles_ptr, cu_queries_ptr, Bq, Tq, 1, 1)
    c = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    clear(dq_ptr + tl.program_id(1) * BLOCK_D, D, D - tl.program_id(1) * BLOCK_D, cu_queries_ptr, Bq, Tq, 1, BLOCK_D)
    if t >= end:
        return
    t = t.to(tl.int64)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(0, columns, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        winner = tl.load(argmax_ptr + t * columns + column, mask=column < columns, other=-1).to(tl.int64)
        won = (winner >= 0) & (winner < Td)
        dscore = tl.load(dscores_ptr + query * stride_sq + column.to(tl.int64) * stride_sd, mask=won, other=0.0)
        total += dscore[:, None] * _load(d_ptr, winner, stride_dt, won, c, D).to(tl.float32)
    tl.store(dq_ptr + t * D + c, tl.sum(total, axis=0).to(dq_ptr.dtype.element_ty), mask=c < D)


@triton.jit
def _bwd_d_kernel(
    dscores_ptr,  # (Bq, columns) fp32
    q_ptr,  # (Tq, D)
    cu_queries_ptr,  # (Bq + 1,)
    cu_documents_ptr,  # (Bd + 1,)
    tiles_ptr,  # (N, 2): document, first row
    argmax_ptr,  # (Tq, columns)
    dd_ptr,  # (Td, D)
    stride_sq, stride_sd, stride_qt, Tq, Td, Bq, Bd, columns, D,
    PAIRWISE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    start, end, first, document = own_rows(tiles_ptr, cu_documents_ptr, Bd, Td, BLOCK_N, BLOCK_N)
    shift = tl.program_id(1) * BLOCK_D
    clear(dd_ptr + shift, D, D - shift, cu_documents_ptr, Bd, Td, BLOCK_N, BLOCK_D)
    if first >= end:
        return
    t_n = tl.arange(0, BLOCK_N) + first
    c = shift + tl.arange(0, BLOCK_D)
    low, high, column = 0, Bq, document
    if PAIRWISE:
        low, high, column = document, document + 1, 0
        dscores_ptr += document * stride_sq
    dscore_ptr = dscores_ptr + column * stride_sd
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for query in range(low, high):
        start_m, end_m = bounds(cu_queries_ptr, query, Tq)
        chosen = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for m in range(start_m, end_m, BLOCK_M):
            t_m = tl.arange(0, BLOCK_M).to(tl.int64) + m
            winner = tl.load(argmax_ptr + t_m * columns + column, mask=t_m < end_m, other=-1)
            q = _load(q_ptr, t_m, stride_qt, t_m < end_m, c, D)
            chosen = tl.dot((t_n[:, None] == winner[None, :]).to(q.dtype), q, chosen, input_precision=PRECISION)
        total += tl.load(dscore_ptr, mask=end_m > start_m, other=0.0) * chosen
        dscore_ptr += stride_sq
    mask = (t_n < end)[:, None] & (c < D)[None, :]
    tl.store(dd_ptr + t_n.to(tl.int64)[:, None] * D + c[None, :], total.to(dd_ptr.dtype.element_ty), mask=mask)


def backward(
    dscores: torch.Tensor,
    q: torch.Tensor,
    d: torch.Tensor,
    cu_queries: torch.Tensor,
    cu_documents: torch.Tensor,
    argmax: torch.Tensor,
    pairwise: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dscores (Bq, Bd) or (B,) -> dq (Tq, D), dd (Td, D)."""
    (Tq, D), Td, Bq, Bd = q.shape, d.shape[0], cu_queries.shape[0] - 1, cu_documents.shape[0] - 1
    dscores, argmax = (x[:, None] if pairwise else x for x in (dscores, argmax.contiguous()))
    columns, strides = argmax.shape[1], dscores.stride()
    wide_q, wide_d = _alike(q, d)
    cu_queries, cu_documents = cu_queries.contiguous(), cu_documents.contiguous()
    block = launch.maxsim("dq", wide_q)
    tiles = padding.tiles(cu_queries, Tq, 1)
    dq = launch.result(q, q.shape, tiles)
    launch.start(
        _bwd_q_kernel, (tiles.shape[0], launch.cdiv(D, block["BLOCK_D"])), q,
        dscores, wide_d, cu_queries, tiles, argmax, dq,
        *strides, wide_d.stride(0), Tq, Td, Bq, columns, D, **block,
    )  # fmt: skip
    block = launch.maxsim("dd", wide_q)
    tiles = padding.tiles(cu_documents, Td, block["BLOCK_N"])
    dd = launch.result(d, d.shape, tiles)
    launch.start(
        _bwd_d_kernel, (tiles.shape[0], launch.cdiv(D, block["BLOCK_D"])), q,
        dscores, wide_q, cu_queries, cu_documents, tiles, argmax, dd,
        *strides, wide_q.stride(0), Tq, Td, Bq, Bd, columns, D, PAIRWISE=pairwise, **block,
    )  # fmt: skip
    return dq, dd
