"""Layer norm alone, with the residual add, with the embedding gather. Reference: reference/layer_norm.py."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from modernbert_fast.dispatch import call_of
from modernbert_fast.library import define, differentiable
from modernbert_fast.ops import checks


def stats_dtype(dtype: torch.dtype) -> torch.dtype:
    """Statistics are fp32, and fp64 for fp64 inputs."""
    return torch.promote_types(dtype, torch.float32)


def _check_affine(width: int, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
    checks.floating(weight=weight, bias=bias)
    checks.shape("weight", weight, width)
    checks.shape("bias", bias, width)
    checks.same_device(x, weight=weight, bias=bias)
    if weight is None and bias is not None:
        raise ValueError("bias needs a weight")


def _check_forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> None:
    checks.floating(x=x, residual=residual)
    checks.shape("x", x, None, None)
    checks.shape("residual", residual, *x.shape)
    checks.same_device(x, residual=residual)
    _check_affine(x.shape[1], x, weight, bias)


def _check_backward(
    dy: torch.Tensor,
    dsum: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    has_bias: bool,
    mean: torch.Tensor,
    rstd: torch.Tensor,
) -> None:
    checks.floating(x=x, dy=dy, dsum=dsum)
    checks.shape("x", x, None, None)
    checks.shape("dy", dy, *x.shape)
    checks.shape("dsum", dsum, *x.shape)
    checks.shape("mean", mean, x.shape[0])
    checks.shape("rstd", rstd, x.shape[0])
    checks.same_device(x, dy=dy, dsum=dsum, weight=weight, mean=mean, rstd=rstd)


def _check_embed(
    ids: torch.Tensor, table: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> None:
    checks.integer(ids=ids)
    checks.shape("ids", ids, None)
    checks.floating(table=table)
    checks.shape("table", table, None, None)
    checks.same_device(table, ids=ids)
    checks.index_range("ids", ids, table.shape[0])
    _check_affine(table.shape[1], table, weight, bias)


def _fake_forward(x: Any, residual: Any, weight: Any, bias: Any, eps: float) -> tuple[torch.Tensor, ...]:
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    stats = x.new_empty(x.shape[0], dtype=stats_dtype(dtype))
    y = x.new_empty(x.shape, dtype=dtype)
    return y, x.new_empty(0) if residual is None else torch.empty_like(y), stats, torch.empty_like(stats)


def _fake_backward(
    dy: Any, dsum: Any, x: Any, weight: Any, has_bias: bool, mean: Any, rstd: Any
) -> tuple[torch.Tensor, ...]:
    width = x.shape[1]
    return (
        x.new_empty(x.shape),
        mean.new_empty(0 if weight is None else width),
        mean.new_empty(width if has_bias else 0),
    )


def _fake_embed(ids: Any, table: Any, weight: Any, bias: Any, eps: float) -> tuple[torch.Tensor, ...]:
    stats = table.new_empty(ids.shape[0], dtype=stats_dtype(table.dtype))
    return table.new_empty((ids.shape[0], table.shape[1])), stats, torch.empty_like(stats)


def flags_of(x: torch.Tensor, residual: Any, *affine: Any) -> tuple[str, ...]:
    """ "mixed dtypes" unless the stream is fp32 or all of one dtype, and weight and bias are fp32 or the stream's."""
    stream = x.dtype if residual is None else residual.dtype
    plain = stream in (x.dtype, torch.float32) and all(t is None or t.dtype in (stream, torch.float32) for t in affine)
    return () if plain else ("mixed dtypes",)


_forward = define(
    "layer_norm_forward(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps)"
    " -> (Tensor y, Tensor sum, Tensor mean, Tensor rstd)",
    op="layer_norm",
    fake=_fake_forward,
    call=lambda x, residual, weight, bias, eps: call_of(
        x, residual, weight, bias, flags=flags_of(x, residual, weight, bias)
    ),
    check=_check_forward,
)
_backward = define(
    "layer_norm_backward(Tensor dy, Tensor? dsum, Tensor x, Tensor? weight, bool has_bias, Tensor mean, Tensor rstd)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    op="layer_norm",
    fake=_fake_backward,
    call=lambda dy, dsum, x, weight, has_bias, mean, rstd: call_of(
        x, dy, dsum, weight, flags=flags_of(x, None, weight)
    ),
    check=_check_backward,
)
_embed_forward = define(
    "layer_norm_embed_forward(Tensor ids, Tensor table, Tensor? weight, Tensor? bias, float eps)"
    " -> (Tensor y, Tensor mean, Tensor rstd)",
    op="layer_norm",
    fake=_fake_embed,
    call=lambda ids, table, weight, bias, eps: call_of(table, weight, bias, flags=flags_of(table, None, weight, bias)),
    check=_check_embed,
)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, residual: Any, weight: Any, bias: Any, eps: float) -> Any:
        y, total, mean, rstd = _forward(x, residual, weight, bias, eps)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if residual is None else total, weight, mean, rstd)
        ctx.dtypes = [None if t is None else t.dtype for t in (x, residual, weight, bias)]
        return y, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Any, dtotal: Any) -> Any:
        x, weight, mean, rstd = ctx.saved_tensors
        x_dtype, residual_dtype, weight_dtype, bias_dtype = ctx.dtypes
        dy = torch.zeros_like(x) if dy is None else dy
        dtotal = None if residual_dtype is None else dtotal
        dx, dweight, dbias = _backward(dy, dtotal, x, weight, bias_dtype is not None, mean, rstd)
        return (
            dx.to(x_dtype),
            None if residual_dtype is None else dx.to(residual_dtype),
            None if weight_dtype is None else dweight.to(weight_dtype),
            None if bias_dtype is None else dbias.to(bias_dtype),
            None,
        )


class _EmbedLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Any, table: Any, weight: Any, bias: Any, eps: float, padding_idx: int) -> Any:
        y, mean, rstd = _embed_forward(ids, table, weight, bias, eps)
        ctx.save_for_backward(ids, table, weight, mean, rstd)
        ctx.padding_idx, ctx.bias_dtype = padding_idx, None if bias is None else bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Any) -> Any:
        ids, table, weight, mean, rstd = ctx.saved_tensors
        has_bias = ctx.bias_dtype is not None
        dx, dweight, dbias = _backward(dy, None, table.index_select(0, ids), weight, has_bias, mean, rstd)
        dtable = None
        if ctx.needs_input_grad[1]:
            dtable = torch.ops.aten.embedding_dense_backward(dx, ids, table.shape[0], ctx.padding_idx, False)
        return (
            None,
            dtable,
            None if weight is None else dweight.to(weight.dtype),
            dbias.to(ctx.bias_dtype) if has_bias else None,
            None,
            None,
        )


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, eps: float = 1e-5
) -> torch.Tensor:
    """Layer norm over the last dimension, statistics in fp32 by the corrected two-pass rule.

    Args:
        x: (..., C) floating point.
        weight, bias: (C,) of x's dtype or fp32, or None.
        eps: added to the variance.

    Returns:
        (..., C) of x's dtype. More accurate than torch on rows far from zero (docs/design.md, numerics).

    Raises:
        TypeError, ValueError: on shapes, dtypes or devices that do not fit.
    """
    run = differentiable(_LayerNorm, _forward)
    return run(x.reshape(-1, x.shape[-1]), None, weight, bias, eps)[0].view(x.shape)


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds `x` to the residual stream and norms the sum, in one pass.

    Args:
        x, residual: (T, C); the sum has their promoted dtype, rounded once.
        weight, bias: (C,) or None.
        eps: added to the variance.

    Returns:
        (normed, residual): both (T, C) of the sum's dtype.
    """
    run = differentiable(_LayerNorm, _forward)
    return run(x, residual, weight, bias, eps)[:2]


def embed_layer_norm(
    ids: torch.Tensor,
    table: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    padding_idx: int | None = None,
) -> torch.Tensor:
    """Gathers embedding rows and norms them, in one pass.

    Args:
        ids: (T,) int32 or int64.
        table: (V, C).
        weight, bias: (C,) or None.
        padding_idx: this row of the table gets no gradient, as in torch.nn.Embedding.

    Returns:
        (T, C) of the table's dtype.

    Raises:
        IndexError: on an id outside [0, V).
    """
    return _EmbedLayerNorm.apply(ids, table, weight, bias, eps, -1 if padding_idx is None else padding_idx)
