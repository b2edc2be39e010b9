"""Late-interaction score of ragged queries and documents. Reference: modernbert_fast/reference/maxsim.py."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from modernbert_fast.dispatch import call_of
from modernbert_fast.library import define, wants_gradients
from modernbert_fast.ops import checks
from modernbert_fast.ops.decompress import Compressed, check_compressed
from modernbert_fast.ops.padding import unpad
from modernbert_fast.ops.ranking import check_choice, ranking

_SCORES = 2**26  # that a search holds at one time


def _check_forward(
    q: torch.Tensor,
    d: torch.Tensor,
    cu_queries: torch.Tensor,
    cu_documents: torch.Tensor,
    pairwise: bool,
    winners: bool = True,
) -> None:
    checks.floating(q=q, d=None if d.dtype == torch.int8 else d)
    checks.shape("q", q, None, None)
    checks.shape("d", d, None, q.shape[1])
    checks.cu_seqlens("cu_queries", cu_queries, q.shape[0])
    checks.cu_seqlens("cu_documents", cu_documents, d.shape[0])
    checks.same_device(q, d=d, cu_queries=cu_queries, cu_documents=cu_documents)
    if pairwise and cu_queries.shape != cu_documents.shape:
        raise ValueError(
            f"pairwise scores need as many queries as documents, got {cu_queries.numel() - 1} and "
            f"{cu_documents.numel() - 1}"
        )


def _check_compressed(
    q: torch.Tensor, codes: Any, nearest: Any, centroids: Any, levels: Any, cu_queries: Any, cu_documents: Any
) -> None:
    check_compressed(codes, nearest, centroids, levels)
    checks.floating(q=q)
    checks.shape("q", q, None, centroids.shape[1])
    checks.cu_seqlens("cu_queries", cu_queries, q.shape[0])
    checks.cu_seqlens("cu_documents", cu_documents, nearest.shape[0])
    checks.same_device(q, codes=codes, cu_queries=cu_queries, cu_documents=cu_documents)


def _check_backward(dscores: torch.Tensor, q: Any, d: Any, cu_q: Any, cu_d: Any, argmax: Any, pairwise: bool) -> None:
    _check_forward(q, d, cu_q, cu_d, pairwise)
    scores, rows = _fake_forward(q, d, cu_q, cu_d, pairwise)
    checks.shape("dscores", dscores, *scores.shape)
    checks.shape("argmax", argmax, *rows.shape)
    checks.same_device(q, dscores=dscores, argmax=argmax)


def _fake_forward(
    q: Any, d: Any, cu_q: Any, cu_d: Any, pairwise: bool, winners: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    queries, documents = cu_q.shape[0] - 1, cu_d.shape[0] - 1
    dtype = torch.promote_types(q.dtype, torch.float32)
    columns = () if pairwise else (documents,)
    rows = (q.shape[0], *columns) if winners else (0,)
    return q.new_empty((queries, *columns), dtype=dtype), q.new_empty(rows, dtype=torch.int32)


_forward = define(
    "maxsim_forward(Tensor q, Tensor d, Tensor cu_queries, Tensor cu_documents, bool pairwise,"
    " bool winners) -> (Tensor scores, Tensor argmax)",
    op="maxsim",
    fake=_fake_forward,
    call=lambda q, d, *rest: call_of(q, d),
    check=_check_forward,
)
_forward_compressed = define(
    "maxsim_forward_compressed(Tensor q, Tensor codes, Tensor nearest, Tensor centroids, Tensor levels,"
    " Tensor cu_queries, Tensor cu_documents) -> Tensor",
    op="maxsim",
    fake=lambda q, codes, nearest, centroids, levels, cu_q, cu_d: _fake_forward(q, None, cu_q, cu_d, False)[0],
    call=lambda q, *rest: call_of(q),
    check=_check_compressed,
)
_backward = define(
    "maxsim_backward(Tensor dscores, Tensor q, Tensor d, Tensor cu_queries, Tensor cu_documents, Tensor argmax,"
    " bool pairwise) -> (Tensor dq, Tensor dd)",
    op="maxsim",
    fake=lambda dscores, q, d, *rest: (q.new_empty(q.shape), d.new_empty(d.shape)),
    call=lambda dscores, q, d, *rest: call_of(q, d),
    check=_check_backward,
)


class _MaxSim(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Any, d: Any, cu_queries: Any, cu_documents: Any, pairwise: bool) -> Any:
        scores, argmax = _forward(q, d, cu_queries, cu_documents, pairwise, True)
        ctx.save_for_backward(q, d, cu_queries, cu_documents, argmax)
        ctx.pairwise = pairwise
        ctx.mark_non_differentiable(argmax)
        return scores, argmax

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dscores: Any, dargmax: Any) -> Any:
        return *_backward(dscores, *ctx.saved_tensors, ctx.pairwise), None, None, None


def maxsim(
    q: torch.Tensor,
    d: torch.Tensor | Compressed,
    cu_queries: torch.Tensor,
    cu_documents: torch.Tensor,
    *,
    pairwise: bool = False,
    return_argmax: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Sum over a query's tokens of the best dot product with any token of the document.

    Args:
        q: (Tq, D) packed query tokens.
        d: (Td, D) packed document tokens; int8 is taken as the integers it holds, and gives no gradients;
            compressed ones likewise, and scores (Bq, Bd) alone.
        cu_queries: (Bq + 1,) int32 bounds, cu_documents: (Bd + 1,) int32 bounds.
        pairwise: score query i against document i only.
        return_argmax: also return which token won.

    Returns:
        scores fp32: (Bq, Bd), or (B,) pairwise. An empty document scores -inf against a query that has tokens (it
        must not beat a real one), an empty query scores 0. With return_argmax also the winners' rows in d, int32
        (Tq, Bd) or (Tq,), -1 where the document is empty.

    Raises:
        ValueError: on bounds or shapes that do not fit.
    """
    if isinstance(d, Compressed):
        if pairwise or return_argmax:
            raise ValueError("compressed documents have no pairwise scores and no winners; decompress them")
        return _scores(q.detach(), d, cu_queries, cu_documents)
    if d.dtype == torch.int8 or not wants_gradients(q, d):  # winners cost time, and memory for each token and document
        scores, argmax = _forward(q.detach(), d, cu_queries, cu_documents, pairwise, return_argmax)
        return (scores, argmax) if return_argmax else scores
    if d is q:
        d = d.view_as(d)  # torch.compile does not trace a Function that gets one tensor twice
    scores, argmax = _MaxSim.apply(q, d, cu_queries, cu_documents, pairwise)
    return (scores, argmax) if return_argmax else scores


def maxsim_topk(
    q: torch.Tensor,
    d: torch.Tensor | Compressed,
    cu_queries: torch.Tensor,
    cu_documents: torch.Tensor,
    k: int,
    *,
    scales: torch.Tensor | None = None,
    allowed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k documents with the best `maxsim` of each query, best first; of equal scores the earlier document.

    No more than 2^26 scores exist at one time. Where there are more, documents are scored a part at a time, and the two
    bounds of each part are read from the device; else nothing is. No gradients.

    Args:
        q, d, cu_queries, cu_documents: as for `maxsim`.
        k: at most this many each.
        scales: (Bd,) floating point factor, at least 0, of each document's scores, which int8 documents need.
        allowed: (Bd,) bool, the documents that may be found; those without tokens or with a score of NaN never are.

    Returns:
        scores (Bq, k) fp32 and documents (Bq, k) int64; -inf and -1 where there are fewer.

    Raises:
        ValueError: on bounds or shapes that do not fit, or k below 1; TypeError: on dtypes other than these.
    """
    Bq, Bd = cu_queries.numel() - 1, cu_documents.numel() - 1
    check_choice(q, Bd, k, scales, allowed)
    at_once = max(1, _SCORES // max(Bq, 1))
    with torch.no_grad():
        if at_once >= Bd:
            scores = _scores(q, d, cu_queries, cu_documents)
            return ranking(scores, cu_documents, k, scales=scales, allowed=allowed)
        # A part is checked where it is scored, but its bounds do not tell where the whole ends.
        checks.same_device(q, cu_documents=cu_documents)
        checks.cu_seqlens("cu_documents", cu_documents, d.shape[0])
        best, documents = q.new_empty((Bq, 0), dtype=torch.float32), q.new_empty((Bq, 0), dtype=torch.int64)
        for first in range(0, Bd, at_once):
            bounds = cu_documents[first : first + at_once + 1]
            start, stop = bounds[[0, -1]].tolist()
            scores = _scores(q, d[start:stop], cu_queries, bounds - start)
            scale, fit = (None if x is None else x[first : first + at_once] for x in (scales, allowed))
            top, found = ranking(scores, bounds, k, scales=scale, allowed=fit)
            found = torch.where(found < 0, found, found + first)
            # Of equals the earlier part's stays before.
            best, order = torch.cat((best, top), 1).sort(dim=1, descending=True, stable=True)
            best, documents = best[:, :k], torch.cat((documents, found), 1).gather(1, order[:, :k])
    return best, documents


def keep_tokens(x: torch.Tensor, cu_seqlens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Leaves tokens out of texts, such as those of a skip list: what is not there neither wins nor counts.

    Args:
        x: (T, D) packed tokens.
        cu_seqlens: (B + 1,) int32 bounds.
        mask: (T,) bool, the tokens that stay.

    Returns:
        The tokens that stay, (T', D), which gradients reach, and their bounds; a text may be left without any.

    Raises:
        ValueError: on shapes that do not fit; TypeError: the mask is not bool.
    """
    checks.shape("x", x, None, None)
    checks.shape("mask", mask, x.shape[0])
    checks.same_device(x, cu_seqlens=cu_seqlens, mask=mask)
    checks.cu_seqlens("cu_seqlens", cu_seqlens, x.shape[0])
    checks.boolean(mask=mask)
    kept = torch.nn.functional.pad(mask.cumsum(0), (1, 0))
    return unpad(x, mask.nonzero().squeeze(1)), kept[cu_seqlens.long()].int()


def _scores(q: Any, d: torch.Tensor | Compressed, cu_queries: Any, cu_documents: Any) -> torch.Tensor:
    """(Bq, Bd), without gradients."""
    if isinstance(d, Compressed):
        return _forward_compressed(q, *vars(d).values(), cu_queries, cu_documents)
    return _forward(q, d, cu_queries, cu_documents, False, False)[0]
