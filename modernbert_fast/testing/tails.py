"""Problems with `n` rows and with `n` columns, n from 1 to 64: every remainder of every vector and tile."""

from __future__ import annotations

from collections.abc import Callable

import torch

from modernbert_fast.testing import compressed, problems
from modernbert_fast.testing.problems import Problem

SIZES = range(1, 65)  # four vectors of the widest instruction set, which is what a loop takes at once


def _padding(n: int, dtype: torch.dtype, device: torch.device) -> list[Problem]:
    moves = [
        make(rows, (width,), kept, dtype, device)
        for make in (problems.unpad, problems.pad)
        for rows, width, kept in ((n + 2, 3, n), (4, n, 3))
    ]
    plans = [
        problems.plan(lambda draw, kind=kind: draw.integers(0, 2, 3, n).to(kind), device)  # type: ignore[misc]
        for kind in (torch.bool, torch.int32, torch.int64)
    ]
    return [*moves, *plans, problems.tiles((n, 0, 3), 4, device)]


def _layer_norm(n: int, dtype: torch.dtype, device: torch.device) -> list[Problem]:
    return [
        problems.layer_norm(3, n, dtype, device, weight=dtype, bias=dtype),
        problems.layer_norm(2, n, dtype, device, residual=dtype, weight=torch.float32),
        problems.layer_norm(n, 5, dtype, device, residual=torch.float32, weight=torch.float32),
        problems.embed_layer_norm(n, 4, 5, dtype, device),
        problems.embed_layer_norm(3, 4, n, dtype, device, ids=torch.int32),
    ]


def _attention(n: int, dtype: torch.dtype, device: torch.device) -> list[Problem]:
    return [
        problems.attention((n, 2), 1, 64, dtype, device),
        problems.attention((1, 65 + n), 1, 64, dtype, device, window=3),
        problems.attention((n, 3), 1, 16, dtype, device, expanded=True),
        problems.attention((5, 2), 1, 2 * n, dtype, device),
        problems.attention((5, 2), 2, n, dtype, device, rotary=False),
    ]


def _linear(n: int, dtype: torch.dtype, device: torch.device) -> list[Problem]:
    return [
        make(T, K, N, dtype, device, bias=bias)
        for make in (problems.linear, problems.linear_geglu)
        for T, K, N, bias in ((n, 5, 3, False), (3, n, 5, True), (3, 5, n, True))
    ]


def _pooling(n: int, dtype: torch.dtype, device: torch.device) -> list[Problem]:
    return [
        problems.pooling(lengths, C, dtype, device, mode=mode, normalize=True)
        for mode in ("cls", "mean")
        for lengths, C in (((n, 0, 2), 3), ((3, 2), n))
    ]


def _maxsim(n: int, dtype: torch.dtype, device: torch.device) -> list[Problem]:
    sizes = (((n, 2), (3, n), 5), ((2, 1), (3, 1), n))
    whole = [
        problems.maxsim(queries, documents, D, dtype, device, pairwise=pairwise)
        for queries, documents, D in sizes
        for pairwise in (False, True)
    ]
    coded = [compressed.maxsim(queries, documents, 2, D, dtype, device) for queries, documents, D in sizes]
    return whole + coded


# The new op of the table adds its own.
TAILS: dict[str, Callable[[int, torch.dtype, torch.device], list[Problem]]] = {
    "padding": _padding,
    "layer_norm": _layer_norm,
    "attention": _attention,
    "rope": lambda n, dtype, device: [problems.rope(n, 1, 8, dtype, device), problems.rope(3, 2, 2 * n, dtype, device)],
    "geglu": lambda n, dtype, device: [problems.geglu(n, 5, dtype, device), problems.geglu(3, n, dtype, device)],
    "linear": _linear,
    "encoder_layer": lambda n, dtype, device: [
        problems.encoder_layer((n, 2), 1, 8, 6, dtype, device, window=3, bias=True),
        problems.encoder_layer((3, 2), 2, 2 * n, 5, dtype, device, first=True),
    ],
    "pooling": _pooling,
    "maxsim": _maxsim,
    "decompress": lambda n, dtype, device: [
        compressed.decompress(T, K, D, device) for T, K, D in ((n, 2, 5), (3, n, 5), (3, 2, n))
    ],
    "cross_entropy": lambda n, dtype, device: [
        problems.cross_entropy(T, C, V, dtype, device) for T, C, V in ((n, 3, 5), (3, n, 5), (3, 5, n))
    ],
}
