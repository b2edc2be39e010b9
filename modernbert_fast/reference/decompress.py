"""Vectors of 4 bits an element in plain torch: the definition of right for ops/decompress.py."""

from __future__ import annotations

import torch


def forward(codes: torch.Tensor, nearest: torch.Tensor, centroids: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """codes (T, D / 2, rounded up), nearest (T,), centroids (K, D), levels (K, 16) -> (T, D) int8."""
    near = nearest.long().clamp(0, max(centroids.shape[0] - 1, 0))  # where nobody could check it before
    places = torch.cat((codes & 15, codes >> 4), dim=1)[:, : centroids.shape[1]]
    return centroids[near] + levels[near].gather(1, places.long())
