"""The best of each query's scores in plain torch: the definition of right for ops/ranking.py."""

from __future__ import annotations

import torch

_MAGNITUDE, _LOW = 2**31 - 1, 2**32 - 1  # bits of an fp32 number without its sign; the low half of an int64


def forward(
    scores: torch.Tensor,
    cu_documents: torch.Tensor,
    scales: torch.Tensor | None,
    allowed: torch.Tensor | None,
    k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """scores (B, N), cu_documents (N + 1,), scales (N,), allowed (N,) -> best (B, k) fp32, documents (B, k) int64.

    A score and its document make one int64, larger for the earlier of equals: no two are equal, so `topk` has one
    answer on every device.
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    wide = (wide if scales is None else wide * scales).float()
    found = (cu_documents.diff() > 0) & (wide > float("-inf"))  # which NaN is not
    found = found if allowed is None else found & allowed
    bits = (wide.masked_fill(~found, float("-inf")) + 0.0).view(torch.int32)  # -0 becomes 0
    documents = torch.arange(scores.shape[1], device=scores.device)
    keys = (bits ^ (bits >> 31 & _MAGNITUDE)).long() << 32 | (_LOW - documents)
    best = keys.topk(min(k, keys.shape[1])).values
    high = (best >> 32).int()
    top = (high ^ (high >> 31 & _MAGNITUDE)).view(torch.float32)
    documents = torch.where(top > float("-inf"), _LOW - (best & _LOW), -1)
    missing, pad = (0, k - best.shape[1]), torch.nn.functional.pad
    return pad(top, missing, value=float("-inf")), pad(documents, missing, value=-1)
