"""Checks shared by the ops: every message names the argument, what it is and what it should be."""

from __future__ import annotations

import os

import torch

from modernbert_fast.dispatch import host_readable

_CHECK = os.environ.get("MODERNBERT_FAST_CHECK", "")
if _CHECK not in ("", "strict"):
    raise ValueError(f"MODERNBERT_FAST_CHECK must be strict or unset, got {_CHECK!r}")
STRICT = _CHECK == "strict"


def readable(x: torch.Tensor) -> bool:
    """Whether the values of `x` are to be checked: where reading them is free, and everywhere under strict checks."""
    return STRICT or host_readable(x)


def floating(**tensors: torch.Tensor | None) -> None:
    """Every tensor is floating point; None passes."""
    for name, x in tensors.items():
        if x is not None and not x.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {x.dtype}")


def integer(**tensors: torch.Tensor | None) -> None:
    """Every tensor is int32 or int64; None passes."""
    for name, x in tensors.items():
        if x is not None and x.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} must be int32 or int64, got {x.dtype}")


def boolean(**tensors: torch.Tensor | None) -> None:
    """Every tensor is bool; None passes."""
    for name, x in tensors.items():
        if x is not None and x.dtype != torch.bool:
            raise TypeError(f"{name} must be bool, got {x.dtype}")


def shape(name: str, x: torch.Tensor | None, *expected: int | None) -> None:
    """`x` has as many dimensions as `expected` and each size that is not None; None passes."""
    if x is None:
        return
    if x.dim() != len(expected) or any(e is not None and s != e for s, e in zip(x.shape, expected, strict=True)):
        wanted = ", ".join("*" if e is None else str(int(e)) for e in expected)
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(x.shape)}")


def same_device(x: torch.Tensor, **others: torch.Tensor | None) -> None:
    """Every other tensor lives where `x` lives."""
    for name, other in others.items():
        if other is not None and other.device != x.device:
            raise ValueError(f"{name} is on {other.device}, expected {x.device}")


def cu_seqlens(name: str, bounds: torch.Tensor, total: int) -> int:
    """`bounds` (B+1,) int32 rises from 0 to `total`. Returns the longest text's length, 0 where nothing is read.

    The values are read where that is free (on the CPU), and everywhere under MODERNBERT_FAST_CHECK=strict; kernels
    on other devices clamp instead.
    """
    if bounds.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {bounds.dtype}")
    if bounds.dim() != 1 or bounds.numel() < 1:
        raise ValueError(f"{name} must have shape (B + 1,), got {tuple(bounds.shape)}")
    if not readable(bounds):
        return 0
    values = bounds.tolist()
    if values[0] != 0:
        raise ValueError(f"{name}[0] must be 0, got {values[0]}")
    longest = 0
    for i in range(1, len(values)):
        length = values[i] - values[i - 1]
        if length < 0:
            raise ValueError(f"{name} must not fall: {name}[{i}] = {values[i]} after {values[i - 1]}")
        longest = max(longest, length)
    if values[-1] != total:
        raise ValueError(f"{name}[-1] must be the number of tokens, {total}, got {values[-1]}")
    return longest


def index_range(name: str, index: torch.Tensor, size: int, low: int = 0) -> None:
    """Every entry of `index` lies in [low, size); read where that is free, and everywhere under strict checks."""
    if index.numel() == 0 or not readable(index):
        return
    smallest, largest = (int(v) for v in torch.aminmax(index))
    if smallest < low or largest >= size:
        worst = smallest if smallest < low else largest
        raise IndexError(f"{name} holds {worst}, outside [{low}, {size})")
