"""A whole encoder layer without gradients, in one call. Reference: modernbert_fast/reference/encoder_layer.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from modernbert_fast import dispatch
from modernbert_fast.dispatch import QUERIES_ONLY, Call, call_of
from modernbert_fast.geometry import Geometry
from modernbert_fast.library import define, is_transformed, wants_gradients
from modernbert_fast.ops import checks
from modernbert_fast.ops.attention import check_forward
from modernbert_fast.ops.layer_norm import flags_of

_PARTS = ("layer_norm", "attention", "linear", "geglu")


class Weights(NamedTuple):
    """The parameters of a layer, in the order of the op's schema; biases may be None, and attn_norm too."""

    attn_norm: torch.Tensor | None  # (C,)
    attn_norm_bias: torch.Tensor | None
    attn_norm_eps: float
    Wqkv: torch.Tensor  # (3 H D, C)
    Wqkv_bias: torch.Tensor | None
    attn_Wo: torch.Tensor  # (C, H D)
    attn_Wo_bias: torch.Tensor | None
    mlp_norm: torch.Tensor
    mlp_norm_bias: torch.Tensor | None
    mlp_norm_eps: float
    Wi: torch.Tensor  # (2 F, C)
    Wi_bias: torch.Tensor | None
    mlp_Wo: torch.Tensor  # (C, F)
    mlp_Wo_bias: torch.Tensor | None


_SCHEMA = (
    "encoder_layer_forward(Tensor x, Tensor? residual,"
    " Tensor? attn_norm, Tensor? attn_norm_bias, float attn_norm_eps,"
    " Tensor Wqkv, Tensor? Wqkv_bias, Tensor attn_Wo, Tensor? attn_Wo_bias,"
    " Tensor mlp_norm, Tensor? mlp_norm_bias, float mlp_norm_eps,"
    " Tensor Wi, Tensor? Wi_bias, Tensor mlp_Wo, Tensor? mlp_Wo_bias, int head_dim,"
    " Tensor cu_seqlens, Tensor? positions, Tensor? cos, Tensor? sin, Tensor? columns,"
    " Tensor? attended, Tensor tiles, SymInt max_seqlen, int window, float scale) -> (Tensor x, Tensor residual)"
)


def _check(x: torch.Tensor, residual: torch.Tensor | None, *rest: Any) -> None:
    w, head_dim, geometry = Weights(*rest[:14]), rest[14], Geometry(*rest[15:])
    tensors = {name: t for name, t in w._asdict().items() if isinstance(t, torch.Tensor)}
    checks.floating(x=x, residual=residual, **tensors)
    for name in ("Wqkv", "Wqkv_bias", "attn_Wo", "attn_Wo_bias", "Wi", "Wi_bias", "mlp_Wo", "mlp_Wo_bias"):
        if name in tensors and tensors[name].dtype != x.dtype:
            raise TypeError(f"x is {x.dtype}, {name} {tensors[name].dtype}: a linear layer takes one dtype")
    checks.shape("x", x, None, None)
    T, C = x.shape
    checks.shape("residual", residual, T, C)
    if residual is not None and residual.dtype != x.dtype:
        raise TypeError(f"x is {x.dtype}, residual {residual.dtype}: a layer takes one dtype")
    if w.attn_norm is None and (residual is not None or w.attn_norm_bias is not None):
        raise ValueError("a residual and a bias need an attn_norm")
    for name in ("attn_norm", "attn_norm_bias", "mlp_norm", "mlp_norm_bias", "attn_Wo_bias", "mlp_Wo_bias"):
        checks.shape(name, getattr(w, name), C)
    checks.shape("Wqkv", w.Wqkv, None, C)
    if head_dim < 1 or w.Wqkv.shape[0] % (3 * head_dim):
        raise ValueError(f"Wqkv has {w.Wqkv.shape[0]} rows, not 3 for each element of heads of {head_dim}")
    checks.shape("Wqkv_bias", w.Wqkv_bias, w.Wqkv.shape[0])
    checks.shape("attn_Wo", w.attn_Wo, C, w.Wqkv.shape[0] // 3)
    checks.shape("Wi", w.Wi, None, C)
    if w.Wi.shape[0] % 2:
        raise ValueError(f"Wi holds two halves and must have an even number of rows, got {w.Wi.shape[0]}")
    checks.shape("Wi_bias", w.Wi_bias, w.Wi.shape[0])
    checks.shape("mlp_Wo", w.mlp_Wo, C, w.Wi.shape[0] // 2)
    checks.same_device(x, residual=residual, **tensors)
    qkv = x.new_empty(()).expand(T, 3, w.Wqkv.shape[0] // (3 * head_dim), head_dim)
    check_forward(qkv, *geometry)


def _fake(x: Any, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _call(x: torch.Tensor, residual: Any, *rest: Any) -> Call:
    w = Weights(*rest[:14])
    norms = (w.attn_norm, w.attn_norm_bias, w.mlp_norm, w.mlp_norm_bias)
    own = _flags(x, Geometry(*rest[15:]).attended)
    return call_of(x, residual, w.Wqkv, *norms, width=rest[14], flags=flags_of(x, residual, *norms) + own)


def _flags(x: torch.Tensor, attended: torch.Tensor | None) -> tuple[str, ...]:
    """Of a layer: the width of a call is that of a head, so that hidden states too wide for a norm have a flag."""
    asked = {"rows of more than 8192 columns": x.shape[-1] > 8192, QUERIES_ONLY: attended is not None}
    return tuple(flag for flag, wanted in asked.items() if wanted)


_forward = define(_SCHEMA, op="encoder_layer", fake=_fake, call=_call, check=_check)


def one_call_serves(
    x: torch.Tensor, residual: torch.Tensor | None, head_dim: int, attended: torch.Tensor | None
) -> bool:
    """Whether encoder_layer may take the place of its ops: it has no gradient and nothing for a compiler to fuse, and
    has to have a row of its own here, while nobody forced another for one of them."""
    if torch.compiler.is_compiling() or wants_gradients():
        return False
    call = call_of(x, residual, width=head_dim, flags=_flags(x, attended))
    return dispatch.stands_for("encoder_layer", _PARTS, call)


def encoder_layer(
    x: torch.Tensor, residual: torch.Tensor | None, weights: Weights, head_dim: int, geometry: Geometry
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm, attention, add and norm, MLP: one layer on packed tokens, to the bit what its ops give. No gradient.

    Args:
        x: (T, C), the output of the layer before; without its residual where that comes apart.
        residual: (T, C) of x's dtype, to be added to x before the first norm, or None.
        weights: the parameters; matrices of x's dtype. Without an attn_norm there may be no residual.
        head_dim: D; Wqkv (3 H D, C) tells H.
        geometry: bounds, rotary tables, window and scale, as attention takes them.

    Returns:
        x (T, C), the output of the MLP, and the residual (T, C) that it is still to be added to.

    Raises:
        ValueError, TypeError: on shapes, dtypes, bounds that do not fit.
        RuntimeError: where a gradient is asked for.
    """
    tensors = (t for t in (x, residual, *weights) if isinstance(t, torch.Tensor))
    if is_transformed() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        raise RuntimeError("encoder_layer has no gradient: call the ops of a layer one by one")
    return _forward(x, residual, *weights, head_dim, *geometry)
