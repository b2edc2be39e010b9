"""GeGLU: gelu of the first half times the second. Reference: modernbert_fast/reference/geglu.py."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from modernbert_fast.dispatch import call_of
from modernbert_fast.library import define, differentiable
from modernbert_fast.ops import checks


def _check_forward(x: torch.Tensor) -> None:
    checks.floating(x=x)
    checks.shape("x", x, None, None)
    if x.shape[1] % 2:
        raise ValueError(f"the last dimension of x holds two halves and must be even, got {x.shape[1]}")


def _check_backward(dy: torch.Tensor, x: torch.Tensor) -> None:
    _check_forward(x)
    checks.shape("dy", dy, x.shape[0], x.shape[1] // 2)
    checks.floating(dy=dy)
    checks.same_device(x, dy=dy)


_forward = define(
    "geglu_forward(Tensor x) -> Tensor",
    op="geglu",
    fake=lambda x: x.new_empty((x.shape[0], x.shape[1] // 2)),
    call=call_of,
    check=_check_forward,
)
_backward = define(
    "geglu_backward(Tensor dy, Tensor x) -> Tensor",
    op="geglu",
    fake=lambda dy, x: x.new_empty(x.shape),
    call=lambda dy, x: call_of(x, dy, flags=("mixed dtypes",) * (dy.dtype != x.dtype)),
    check=_check_backward,
)


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return _forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Any) -> Any:
        return _backward(dy, *ctx.saved_tensors)


def geglu(x: torch.Tensor) -> torch.Tensor:
    """gelu(a) * b for the halves a, b of the last dimension; gelu is the exact erf one, computed in fp32.

    Args:
        x: (..., 2F) floating point.

    Returns:
        (..., F) of x's dtype, rounded once (torch rounds gelu(a) before the product).

    Raises:
        ValueError: when the last dimension is odd.
    """
    y = differentiable(_Geglu, _forward)(rows(x))
    return y.view(*x.shape[:-1], y.shape[-1])


def rows(x: torch.Tensor) -> torch.Tensor:
    """(..., K) -> (T, K), K = 0 included, which reshape(-1, K) is not."""
    return x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
