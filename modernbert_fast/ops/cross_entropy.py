"""Cross entropy of labelled rows with the vocabulary, logits never stored. Reference: reference/cross_entropy.py."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from modernbert_fast.dispatch import call_of
from modernbert_fast.library import define
from modernbert_fast.ops import checks


def _check_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, ignore_index: int
) -> None:
    checks.floating(x=x, weight=weight, bias=bias)
    checks.shape("x", x, None, None)
    checks.shape("weight", weight, None, x.shape[1])
    checks.shape("bias", bias, weight.shape[0])
    checks.shape("labels", labels, x.shape[0])
    checks.integer(labels=labels)
    checks.same_device(x, weight=weight, bias=bias, labels=labels)
    if checks.readable(labels):
        checks.index_range("labels", labels[labels != ignore_index], weight.shape[0])


def _check_backward(
    dloss: Any, x: Any, weight: Any, bias: Any, labels: Any, lse: Any, ignore_index: int, *needs: bool
) -> None:
    _check_forward(x, weight, bias, labels, ignore_index)
    checks.shape("dloss", dloss, x.shape[0])
    checks.shape("lse", lse, x.shape[0])
    checks.same_device(x, dloss=dloss, lse=lse)


def _fake_forward(x: Any, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    loss = x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
    return loss, torch.empty_like(loss)


def _fake_backward(
    dloss: Any, x: Any, weight: Any, bias: Any, labels: Any, lse: Any, ignore_index: int, *needs: bool
) -> tuple[torch.Tensor, ...]:
    need_dx, need_dweight, need_dbias = needs
    return (
        x.new_empty(x.shape if need_dx else 0),
        weight.new_empty(weight.shape if need_dweight else 0),
        weight.new_empty(weight.shape[0] if need_dbias else 0),
    )


_forward = define(
    "cross_entropy_forward(Tensor x, Tensor weight, Tensor? bias, Tensor labels, int ignore_index)"
    " -> (Tensor loss, Tensor lse)",
    op="cross_entropy",
    fake=_fake_forward,
    call=lambda x, weight, bias, *rest: call_of(x, weight, bias),
    check=_check_forward,
)
_backward = define(
    "cross_entropy_backward(Tensor dloss, Tensor x, Tensor weight, Tensor? bias, Tensor labels, Tensor lse,"
    " int ignore_index, bool need_dx, bool need_dweight, bool need_dbias)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    op="cross_entropy",
    fake=_fake_backward,
    call=lambda dloss, x, weight, bias, *rest: call_of(x, weight, bias),
    check=_check_backward,
)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, labels: Any, ignore_index: int) -> Any:
        loss, lse = _forward(x, weight, bias, labels, ignore_index)
        ctx.save_for_backward(x, weight, bias, labels, lse)
        ctx.ignore_index = ignore_index
        ctx.mark_non_differentiable(lse)
        return loss, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Any, dlse: Any) -> Any:
        needs = ctx.needs_input_grad[:3]
        grads = _backward(dloss, *ctx.saved_tensors, ctx.ignore_index, *needs)
        return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None


def cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    ignore_index: int = -100,
) -> torch.Tensor:
    """Loss of each row against its label; the vocabulary meets labelled rows only, a chunk of rows at a time.

    Args:
        x: (T, C) rows after the prediction head.
        weight: (V, C) decoder, bias: (V,) or None.
        labels: (T,) int32 or int64.
        ignore_index: rows with this label cost nothing and get no gradient.

    Returns:
        (T,) fp32, 0 for ignored rows. Divide its sum by the number of labelled rows for the usual mean.

    Raises:
        IndexError: on a label outside [0, V).
    """
    return _CrossEntropy.apply(x, weight, bias, labels, ignore_index)[0]
