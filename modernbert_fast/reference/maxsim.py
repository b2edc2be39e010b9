"""Late-interaction score in plain torch: the definition of right for ops/maxsim.py."""

from __future__ import annotations

import torch

from modernbert_fast.reference import decompress


def _pairs(cu_queries: torch.Tensor, cu_documents: torch.Tensor, pairwise: bool):
    """Yields (query rows, document rows, index of the score) for every score wanted."""
    queries, documents = cu_queries.tolist(), cu_documents.tolist()
    for i in range(len(queries) - 1):
        for j in (i,) if pairwise else range(len(documents) - 1):
            index = (i,) if pairwise else (i, j)
            yield slice(queries[i], queries[i + 1]), slice(documents[j], documents[j + 1]), index


def forward(
    q: torch.Tensor,
    d: torch.Tensor,
    cu_queries: torch.Tensor,
    cu_documents: torch.Tensor,
    pairwise: bool,
    winners: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q (Tq, D), d (Td, D) -> scores (Bq, Bd) or (B,), argmax (Tq, Bd) or (Tq,), or (0,) without winners."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    wide_q, wide_d = q.to(dtype), d.to(dtype)
    columns = () if pairwise else (cu_documents.numel() - 1,)
    scores = wide_q.new_zeros((cu_queries.numel() - 1, *columns))
    argmax = q.new_full((q.shape[0], *columns) if winners else (0,), -1, dtype=torch.int32)
    for rows, document, index in _pairs(cu_queries, cu_documents, pairwise):
        if rows.start == rows.stop:
            continue
        if document.start == document.stop:
            scores[index] = float("-inf")
            continue
        best, winner = (wide_q[rows] @ wide_d[document].t()).max(dim=1)
        scores[index] = best.sum()
        if winners:
            argmax[(rows,) + index[1:]] = (winner + document.start).int()
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
    """q (Tq, D), documents as decompress takes them -> scores (Bq, Bd)."""
    d = decompress.forward(codes, nearest, centroids, levels)
    return forward(q, d, cu_queries, cu_documents, False, False)[0]


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
    dtype = dscores.dtype
    dq, dd = q.new_zeros(q.shape, dtype=dtype), d.new_zeros(d.shape, dtype=dtype)
    for rows, document, index in _pairs(cu_queries, cu_documents, pairwise):
        if rows.start == rows.stop or document.start == document.stop:
            continue
        # A selection matrix adds up in a fixed order where index_add would not on every device.
        tokens = torch.arange(document.start, document.stop, device=d.device)
        chosen = (argmax[(rows,) + index[1:]][:, None] == tokens).to(dtype)
        dq[rows] += dscores[index] * (chosen @ d[document].to(dtype))
        dd[document] += dscores[index] * (chosen.t() @ q[rows].to(dtype))
    return dq.to(q.dtype), dd.to(d.dtype)
