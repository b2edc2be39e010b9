"""A whole encoder layer in plain torch: the definition of right for ops/encoder_layer.py."""

from __future__ import annotations

from typing import Any

import torch

from modernbert_fast.reference import attention, layer_norm, linear


def forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    attn_norm: torch.Tensor | None,
    attn_norm_bias: torch.Tensor | None,
    attn_norm_eps: float,
    Wqkv: torch.Tensor,
    Wqkv_bias: torch.Tensor | None,
    attn_Wo: torch.Tensor,
    attn_Wo_bias: torch.Tensor | None,
    mlp_norm: torch.Tensor,
    mlp_norm_bias: torch.Tensor | None,
    mlp_norm_eps: float,
    Wi: torch.Tensor,
    Wi_bias: torch.Tensor | None,
    mlp_Wo: torch.Tensor,
    mlp_Wo_bias: torch.Tensor | None,
    head_dim: int,
    *geometry: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual (T, C) -> the output of the MLP (T, C), the residual (T, C) it is to be added to."""
    normed = stream = x
    if attn_norm is not None:
        normed, total, *_ = layer_norm.forward(x, residual, attn_norm, attn_norm_bias, attn_norm_eps)
        stream = x if residual is None else total
    qkv = linear.forward(normed, Wqkv, Wqkv_bias).unflatten(1, (3, -1, head_dim))
    o, _ = attention.forward(qkv, *geometry)
    attended = linear.forward(o.flatten(1), attn_Wo, attn_Wo_bias)
    normed, stream, *_ = layer_norm.forward(attended, stream, mlp_norm, mlp_norm_bias, mlp_norm_eps)
    return linear.forward(linear.forward_geglu(normed, Wi, Wi_bias), mlp_Wo, mlp_Wo_bias), stream
