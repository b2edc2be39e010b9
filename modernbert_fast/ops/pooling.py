"""One vector a packed text: its first row or its mean, of unit length if asked. Reference: reference/pooling.py."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from modernbert_fast.dispatch import call_of
from modernbert_fast.library import define
from modernbert_fast.ops import checks

MODES = ("cls", "mean")


def _check_forward(x: torch.Tensor, cu_seqlens: torch.Tensor, mode: str, normalize: bool) -> None:
    checks.floating(x=x)
    checks.shape("x", x, None, None)
    checks.cu_seqlens("cu_seqlens", cu_seqlens, x.shape[0])
    checks.same_device(x, cu_seqlens=cu_seqlens)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")


def _check_backward(
    dy: torch.Tensor, y: torch.Tensor, norm: torch.Tensor, cu_seqlens: torch.Tensor, mode: str, normalize: bool, T: int
) -> None:
    checks.floating(dy=dy, y=y, norm=norm)
    checks.shape("y", y, cu_seqlens.shape[0] - 1, None)
    checks.shape("dy", dy, *y.shape)
    checks.shape("norm", norm, y.shape[0])
    checks.cu_seqlens("cu_seqlens", cu_seqlens, T)
    checks.same_device(y, dy=dy, norm=norm, cu_seqlens=cu_seqlens)


def _fake_forward(x: Any, cu_seqlens: Any, mode: str, normalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    B = cu_seqlens.shape[0] - 1
    return x.new_empty((B, x.shape[1])), x.new_empty(B, dtype=torch.promote_types(x.dtype, torch.float32))


_forward = define(
    "pooling_forward(Tensor x, Tensor cu_seqlens, str mode, bool normalize) -> (Tensor y, Tensor norm)",
    op="pooling",
    fake=_fake_forward,
    call=lambda x, *rest: call_of(x),
    check=_check_forward,
)
_backward = define(
    "pooling_backward(Tensor dy, Tensor y, Tensor norm, Tensor cu_seqlens, str mode, bool normalize, SymInt T)"
    " -> Tensor",
    op="pooling",
    fake=lambda dy, y, norm, cu_seqlens, mode, normalize, T: y.new_empty((T, y.shape[1])),
    call=lambda dy, y, *rest: call_of(y, dy, flags=("mixed dtypes",) * (dy.dtype != y.dtype)),
    check=_check_backward,
)


class _Pooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, cu_seqlens: Any, mode: str, normalize: bool) -> Any:
        y, norm = _forward(x, cu_seqlens, mode, normalize)
        ctx.save_for_backward(y, norm, cu_seqlens)
        ctx.mode, ctx.normalize, ctx.T = mode, normalize, x.shape[0]
        ctx.mark_non_differentiable(norm)
        return y, norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Any, dnorm: Any) -> Any:
        return _backward(dy, *ctx.saved_tensors, ctx.mode, ctx.normalize, ctx.T), None, None, None


def pooling(x: torch.Tensor, cu_seqlens: torch.Tensor, mode: str = "cls", normalize: bool = False) -> torch.Tensor:
    """Pools packed rows to one vector a text, sums in fp32.

    Args:
        x: (T, C) floating point.
        cu_seqlens: (B + 1,) int32 bounds of the texts.
        mode: "cls" takes the first row of each text, "mean" the mean of its rows.
        normalize: divide by the Euclidean length (at least 1e-12).

    Returns:
        (B, C) of x's dtype; the row of an empty text is zero.

    Raises:
        ValueError: on bounds, shapes or modes that do not fit.
    """
    return _Pooling.apply(x, cu_seqlens, mode, normalize)[0]
