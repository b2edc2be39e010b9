"""Rotary position embedding on packed qkv. Reference: modernbert_fast/reference/rope.py."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from modernbert_fast.dispatch import call_of
from modernbert_fast.library import define
from modernbert_fast.ops import checks


def check_tables(T: int, D: int, qkv: torch.Tensor, positions: Any, cos: Any, sin: Any) -> None:
    """positions (T,) int32, and cos, sin (P, D / 2) fp32 (fp64 for fp64 qkv), on qkv's device."""
    checks.shape("positions", positions, T)
    checks.integer(positions=positions)
    checks.shape("cos", cos, None, D // 2)
    checks.shape("sin", sin, *cos.shape)
    table_dtype = torch.promote_types(qkv.dtype, torch.float32)
    if D % 2 or cos.dtype != table_dtype or sin.dtype != table_dtype:
        raise ValueError(f"cos, sin must be {table_dtype} and the head dim even, got {cos.dtype}, {sin.dtype}, D={D}")
    checks.same_device(qkv, positions=positions, cos=cos, sin=sin)
    checks.index_range("positions", positions, cos.shape[0])


def _check(qkv: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    checks.floating(qkv=qkv)
    checks.shape("qkv", qkv, None, 3, None, None)
    check_tables(qkv.shape[0], qkv.shape[3], qkv, positions, cos, sin)


_forward = define(
    "rope_forward(Tensor qkv, Tensor positions, Tensor cos, Tensor sin) -> Tensor",
    op="rope",
    fake=lambda qkv, positions, cos, sin: qkv.new_empty(qkv.shape),
    call=lambda qkv, positions, cos, sin: call_of(qkv),
    check=_check,
)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Any, positions: Any, cos: Any, sin: Any) -> Any:
        ctx.save_for_backward(positions, cos, sin)
        return _forward(qkv, positions, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dqkv: Any) -> Any:
        positions, cos, sin = ctx.saved_tensors
        return _forward(dqkv, positions, cos, -sin), None, None, None


def rope(qkv: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates q and k by their positions, half-split form; v passes unchanged.

    Args:
        qkv: (T, 3, H, D) floating point, D even.
        positions: (T,) int32 rows of the tables.
        cos, sin: (P, D / 2) fp32 (fp64 for fp64 qkv).

    Returns:
        (T, 3, H, D). transformers rounds cos and sin to the model's dtype; here they stay fp32.

    Raises:
        IndexError: on a position outside [0, P).
    """
    return _Rope.apply(qkv, positions, cos, sin)
