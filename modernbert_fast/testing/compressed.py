"""Problems of vectors in 4 bits an element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modernbert_fast import ops
from modernbert_fast.testing import plain
from modernbert_fast.testing.problems import Problem


def decompress(T: int, K: int, D: int, device: torch.device) -> Problem:
    """T vectors of D elements near K centroids; whole numbers of the full range, so that some sums are beyond it."""
    return Problem(
        "decompress", torch.float32, device,
        lambda draw: {
            "codes": draw.integers(0, 256, T, (D + 1) // 2, dtype=torch.uint8),
            "nearest": draw.integers(0, max(K, 1), T, dtype=torch.int16),
            "centroids": draw.integers(-128, 128, K, D, dtype=torch.int8),
            "levels": draw.integers(-128, 128, K, 16, dtype=torch.int8),
        },
        ops.decompress, plain.decompress, exact=True,
    )  # fmt: skip


def maxsim(
    queries: Sequence[int], documents: Sequence[int], K: int, D: int, dtype: torch.dtype, device: torch.device
) -> Problem:
    """q (Tq, D) against compressed documents near K centroids."""
    vectors = decompress(sum(documents), K, D, device)

    def run(q: Any, cu_queries: Any, cu_documents: Any, **parts: torch.Tensor) -> Any:
        return ops.maxsim(q, ops.Compressed(**parts), cu_queries, cu_documents)

    def in_torch(q: Any, cu_queries: Any, cu_documents: Any, **parts: torch.Tensor) -> Any:
        return plain.maxsim(q, plain.decompress(**parts).to(q.dtype), cu_queries, cu_documents, False)

    return Problem(
        "maxsim", dtype, device,
        lambda draw: {
            "q": draw(sum(queries), D),
            **vectors.draw(draw),
            "cu_queries": draw.bounds(queries),
            "cu_documents": draw.bounds(documents),
        },
        run, in_torch,
    )  # fmt: skip
