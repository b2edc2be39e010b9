"""The best of each query's scores. Reference: modernbert_fast/reference/ranking.py."""

from __future__ import annotations

from typing import Any

import torch

from modernbert_fast.dispatch import Call, call_of
from modernbert_fast.library import define
from modernbert_fast.ops import checks

_FEW = 128  # that a kernel takes one after the other


def check_choice(x: torch.Tensor, N: int, k: int, scales: torch.Tensor | None, allowed: torch.Tensor | None) -> None:
    """What chooses among N documents, on the device of `x`.

    Raises:
        ValueError: on shapes that do not fit, or k below 1; TypeError: on dtypes that do not.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    checks.floating(scales=scales)
    checks.boolean(allowed=allowed)
    for name, given in (("scales", scales), ("allowed", allowed)):
        checks.shape(name, given, N)
        if given is not None:
            checks.same_device(x, **{name: given})


def _check(scores: torch.Tensor, cu_documents: torch.Tensor, scales: Any, allowed: Any, k: int) -> None:
    checks.floating(scores=scores)
    checks.shape("scores", scores, None, None)
    checks.integer(cu_documents=cu_documents)
    checks.shape("cu_documents", cu_documents, scores.shape[1] + 1)
    checks.same_device(scores, cu_documents=cu_documents)
    check_choice(scores, scores.shape[1], k, scales, allowed)


def _call(scores: torch.Tensor, cu_documents: torch.Tensor, scales: Any, allowed: Any, k: int) -> Call:
    return call_of(scores, scales, flags=(f"more than {_FEW} best",) if k > _FEW else ())


def _fake(scores: Any, cu_documents: Any, scales: Any, allowed: Any, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (scores.shape[0], k)
    return scores.new_empty(shape, dtype=torch.float32), scores.new_empty(shape, dtype=torch.int64)


_forward = define(
    "ranking_forward(Tensor scores, Tensor cu_documents, Tensor? scales, Tensor? allowed, int k)"
    " -> (Tensor best, Tensor documents)",
    op="ranking",
    fake=_fake,
    call=_call,
    check=_check,
)


def ranking(
    scores: torch.Tensor,
    cu_documents: torch.Tensor,
    k: int,
    *,
    scales: torch.Tensor | None = None,
    allowed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best scores of each query, best first, and whose they are; of equal scores the earlier document's.

    No gradients, and nothing is read from the device.

    Args:
        scores: (B, N) of N documents.
        cu_documents: (N + 1,) int32 bounds of the documents; one without tokens is never found.
        k: at most this many each.
        scales: (N,) positive floating point factor of each document's scores.
        allowed: (N,) bool, the documents that may be found; one with a score of NaN or -inf never is.

    Returns:
        scores (B, k) fp32, scaled, and documents (B, k) int64; -inf and -1 where there are fewer.

    Raises:
        ValueError: on shapes that do not fit, or k below 1; TypeError: on dtypes other than these.
    """
    return _forward(scores.detach(), cu_documents, scales, allowed, k)
