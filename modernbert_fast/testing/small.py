"""A handful of problems for every op, for questions that do not depend on size."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from modernbert_fast.testing import compressed, problems
from modernbert_fast.testing.problems import Problem


def _padding(dtype: torch.dtype, device: torch.device) -> list[Problem]:
    return [
        problems.unpad(20, (6,), 13, dtype, device),
        problems.pad(20, (2, 3), 13, dtype, device),
        problems.plan(lambda draw: draw.integers(0, 3, 4, 9), device),
        problems.tiles((3, 0, 9, 4), 4, device),
    ]


def _layer_norm(dtype: torch.dtype, device: torch.device) -> list[Problem]:
    return [
        problems.layer_norm(9, 24, dtype, device),
        problems.layer_norm(9, 24, dtype, device, residual=dtype, weight=dtype, bias=dtype),
        problems.embed_layer_norm(9, 11, 24, dtype, device),
    ]


def _attention(dtype: torch.dtype, device: torch.device) -> list[Problem]:
    lengths = (5, 1, 0, 9, 3)
    return [
        problems.attention(lengths, 2, 16, dtype, device, rotary=False),
        problems.attention(lengths, 2, 16, dtype, device, window=2),
        problems.attention(lengths, 2, 16, dtype, device, window=2, holes=True),
        problems.attention(lengths, 2, 16, dtype, device, window=2, expanded=True),
    ]


# The new op of the table adds its own.
SMALL: dict[str, Callable[[torch.dtype, torch.device], list[Problem]]] = {
    "padding": _padding,
    "layer_norm": _layer_norm,
    "attention": _attention,
    "rope": lambda dtype, device: [problems.rope(9, 2, 8, dtype, device)],
    "geglu": lambda dtype, device: [problems.geglu(9, 12, dtype, device)],
    "linear": lambda dtype, device: [
        make(9, 12, 6, dtype, device, bias=bias)
        for make in (problems.linear, problems.linear_geglu)
        for bias in (False, True)
    ],
    "encoder_layer": lambda dtype, device: [
        problems.encoder_layer((5, 1, 0, 9, 3), 2, 8, 12, dtype, device, window=2),
        problems.encoder_layer((5, 1, 0, 9, 3), 2, 8, 12, dtype, device, first=True, bias=True),
        problems.encoder_layer((5, 1, 0, 9, 3), 2, 8, 12, dtype, device, window=2, expanded=True),
    ],
    "pooling": lambda dtype, device: [
        problems.pooling((5, 1, 0, 9, 3), 12, dtype, device, mode=mode, normalize=normalize)
        for mode, normalize in itertools.product(("cls", "mean"), (False, True))
    ],
    "maxsim": lambda dtype, device: [
        *(problems.maxsim((3, 1, 4), (5, 2, 7), 65, dtype, device, pairwise=pairwise) for pairwise in (False, True)),
        compressed.maxsim((3, 1, 4), (5, 2, 7), 3, 65, dtype, device),
    ],
    "decompress": lambda dtype, device: [compressed.decompress(9, 3, D, device) for D in (33, 48)],
    "ranking": lambda dtype, device: [
        problems.ranking(3, 20, k, dtype, device, chosen=chosen) for k, chosen in ((4, False), (30, True))
    ],
    "cross_entropy": lambda dtype, device: [
        problems.cross_entropy(9, 12, 17, dtype, device, bias=bias, labelled=0.6) for bias in (False, True)
    ],
}
