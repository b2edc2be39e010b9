"""Which matrix product runs a linear layer. Reference: modernbert_fast/reference/linear.py."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from modernbert_fast.dispatch import call_of
from modernbert_fast.library import define, differentiable
from modernbert_fast.ops import checks
from modernbert_fast.ops.geglu import geglu, rows


def _check_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    checks.shape("x", x, None, None)
    checks.shape("weight", weight, None, x.shape[1])
    checks.shape("bias", bias, weight.shape[0])
    checks.floating(x=x, weight=weight, bias=bias)
    checks.same_device(x, weight=weight, bias=bias)
    if weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        raise TypeError(f"x is {x.dtype}, weight {weight.dtype}: a linear layer takes one dtype")


def _check_geglu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    _check_forward(x, weight, bias)
    if weight.shape[0] % 2:
        raise ValueError(f"weight holds two halves and must have an even number of rows, got {weight.shape[0]}")


def _check_backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *needs: bool) -> None:
    _check_forward(x, weight, None)
    checks.shape("dy", dy, x.shape[0], weight.shape[0])
    checks.same_device(x, dy=dy)


def _fake_backward(dy: Any, x: Any, weight: Any, need_dx: bool, need_dweight: bool, need_dbias: bool) -> Any:
    return (
        x.new_empty(x.shape if need_dx else 0),
        x.new_empty(weight.shape if need_dweight else 0),
        x.new_empty(weight.shape[0] if need_dbias else 0),
    )


_forward = define(
    "linear_forward(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    op="linear",
    fake=lambda x, weight, bias: x.new_empty((x.shape[0], weight.shape[0])),
    call=call_of,
    check=_check_forward,
)
_forward_geglu = define(
    "linear_forward_geglu(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    op="linear",
    fake=lambda x, weight, bias: x.new_empty((x.shape[0], weight.shape[0] // 2)),
    call=call_of,
    check=_check_geglu,
)
_backward = define(
    "linear_backward(Tensor dy, Tensor x, Tensor weight, bool need_dx, bool need_dweight, bool need_dbias)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    op="linear",
    fake=_fake_backward,
    call=lambda dy, x, weight, *needs: call_of(x, dy, weight),
    check=_check_backward,
)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any) -> Any:
        ctx.save_for_backward(x, weight)
        return _forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Any) -> Any:
        needs = ctx.needs_input_grad
        grads = _backward(dy, *ctx.saved_tensors, *needs)
        return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x weight^T + bias, sums in fp32 for half precision, rounded once.

    Args:
        x: (..., K).
        weight: (N, K), bias (N,) or None, of x's dtype.

    Returns:
        (..., N) of x's dtype.

    Raises:
        TypeError, ValueError: on dtypes or shapes that do not fit.
    """
    y = differentiable(_Linear, _forward)(rows(x), weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


def linear_geglu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """geglu(linear(x, weight, bias)), without storing what the linear layer returns where no gradient needs it.

    Args:
        x: (..., K).
        weight: (2F, K), bias (2F,) or None, of x's dtype.

    Returns:
        (..., F) of x's dtype, to the bit what the two ops return.

    Raises:
        TypeError, ValueError: on dtypes or shapes that do not fit, or an odd number of rows of weight.
    """
    if differentiable(_Linear, _forward_geglu) is not _forward_geglu:
        return geglu(linear(x, weight, bias))
    return _forward_geglu(rows(x), weight, bias).view(*x.shape[:-1], weight.shape[0] // 2)
