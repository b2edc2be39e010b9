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
from modernbert_fast.kernels.texts import bounds, clear, own_rows
from modernbert_fast.reference import decompress

_ELEMENTS = 2**26  # of compressed documents that are integers at one time; plain torch takes about ten bytes for each


@triton.jit
def _load(x_ptr, t, stride, in_text, c, D):
    """Rows t, columns c (rows, columns); zero outside."""
    return tl.load(x_ptr + t[:, None] * stride + c[None, :], mask=in_text[:, None] & (c < D)[None, :], other=0.0)


@triton.jit
def _best(best, at):
    """The largest of each column of best, and the first place that has it; NaN is larger than any number."""
    nan = best != best
    any_nan = tl.max(nan.to(tl.int32), axis=0) > 0
    top = tl.max(tl.where(nan, float("-inf"), best), axis=0)
    wins = tl.where(any_nan[None, :], nan, best == top[None, :]) & (at >= 0)
    return tl.where(any_nan, float("nan"), top), tl.min(tl.where(wins, at, 2**31 - 1), axis=0)


@triton.jit
def _fwd_kernel(
    q_ptr,  # (Tq, D)
    d_ptr,  # (Td, D)
    cu_queries_ptr,  # (Bq + 1,)
    cu_documents_ptr,  # (Bd + 1,)
    scores_ptr,  # (Bq, columns) fp32
    argmax_ptr,  # (Tq, columns) with WINNERS
    stride_qt, stride_dt, Tq, Td, Bq, columns, D,
    PAIRWISE: tl.constexpr, WINNERS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    query, column = tl.program_id(0).to(tl.int64) % Bq, tl.program_id(0).to(tl.int64) // Bq
    start_m, end_m = bounds(cu_queries_ptr, query, Tq)
    start_n, end_n = bounds(cu_documents_ptr, query if PAIRWISE else column, Td)
    c = tl.arange(0, BLOCK_D)
    score = tl.zeros((BLOCK_M,), tl.float32)
    for m in range(start_m, end_m, BLOCK_M):
        t_m = tl.arange(0, BLOCK_M).to(tl.int64) + m
        in_m = t_m < end_m
        if WHOLE:
            q = _load(q_ptr, t_m, stride_qt, in_m, c, D)
        # Every place of the tile keeps the best of what it has seen: they meet once, at the end.
        best = tl.full((BLOCK_N, BLOCK_M), float("-inf"), tl.float32)
        at = tl.full((BLOCK_N, BLOCK_M), -1, tl.int32)
        for n in range(start_n, end_n, BLOCK_N):
            t_n = tl.arange(0, BLOCK_N) + n
            in_n = t_n < end_n
            if WHOLE:
                d = _load(d_ptr, t_n.to(tl.int64), stride_dt, in_n, c, D).to(q.dtype)
                s = tl.dot(d, tl.trans(q), input_precision=PRECISION)
            else:
                s = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
                for k in range(0, D, BLOCK_D):
                    q = _load(q_ptr, t_m, stride_qt, in_m, c + k, D)
                    d = _load(d_ptr, t_n.to(tl.int64), stride_dt, in_n, c + k, D).to(q.dtype)
                    if PRECISION == "ieee":  # sums of sums are more accurate than one long sum: this keeps them apart
                        s += tl.dot(d, tl.trans(q), input_precision=PRECISION, max_num_imprecise_acc=BLOCK_D)
                    else:
                        s = tl.dot(d, tl.trans(q), s, input_precision=PRECISION)
            better = (s > best) | ((s != s) & (best == best))
            if WINNERS:
                better = (better | (at < 0)) & in_n[:, None]
                at = tl.where(better, t_n[:, None], at)
            best = tl.where(better & in_n[:, None], s, best)
        top, winner = _best(best, at)
        score += tl.where(in_m, top, 0.0)
        if WINNERS:
            tl.store(argmax_ptr + t_m * columns + column, tl.where(end_n > start_n, winner, -1), mask=in_m)
    tl.store(scores_ptr + query * columns + column, tl.sum(score, axis=0))


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
    launch.start(
        _fwd_kernel, (scores.numel(),), q,
        q, d, cu_queries.contiguous(), cu_documents.contiguous(), scores, argmax,
        q.stride(0), d.stride(0), Tq, Td, Bq, *(columns or (1,)), D, PAIRWISE=pairwise, WINNERS=winners,
        **launch.maxsim("fwd int8" if d.dtype == torch.int8 else "fwd", q),
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

    Documents become integers some at a time, whole ones. The host waits for their bounds.
    """
    T, step = nearest.shape[0], max(1, _ELEMENTS // max(q.shape[1], 1))
    starts = torch.arange(0, max(T, 1), step, dtype=torch.int32, device=q.device)
    firsts = [*torch.searchsorted(cu_documents, starts).tolist(), cu_documents.shape[0] - 1]
    rows = cu_documents[firsts].tolist()
    parts = []
    for first, last, start, stop in zip(firsts, firsts[1:], rows, rows[1:], strict=False):
        d = decompress.forward(codes[start:stop], nearest[start:stop], centroids, levels)
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
