"""The encoder on packed tokens made of torch's own parts, as well as anyone can: attention by varlen_attn or
FlexAttention, each layer compiled, packing and masks outside the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import torch
import torch.nn.functional as F
from gpu import attention_rivals
from gpu.attention_rivals import Attend

from modernbert_fast.config import EncoderConfig
from modernbert_fast.frequencies import inv_freq

ATTENTION = (attention_rivals.VARLEN, attention_rivals.FLEX)


def encoder(
    model: Any, config: EncoderConfig, lengths: tuple[int, ...], ids: torch.Tensor, attention: str
) -> Callable[[], torch.Tensor]:
    """Hidden states (B, S, C) of texts of `lengths`, ids (B, S) padded on the right.

    Args:
        model: transformers' encoder, whose weights are used.
        attention: one of ATTENTION.
    """
    device, dtype = ids.device, model.dtype
    kept = torch.arange(ids.shape[1], device=device) < torch.tensor(lengths, device=device)[:, None]
    indices, packed_ids = kept.flatten().nonzero().squeeze(1), ids[kept]
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
    positions = torch.cat([torch.arange(n, device=device) for n in lengths])
    attends: dict[str, Attend] = {}
    tables: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for kind in set(config.layer_types):
        window = config.window(kind)
        varlen = attention == attention_rivals.VARLEN
        attends[kind] = (
            attention_rivals.varlen(lengths, window) if varlen else attention_rivals.flex(lengths, window, device)
        )
        angles = positions[:, None].float() * inv_freq(config, kind)[0].to(device)
        angles = torch.cat([angles, angles], dim=1)[:, None]
        tables[kind] = angles.cos().to(dtype), angles.sin().to(dtype)
    run_layer = torch.compile(_layer, backend=harness.COMPILER, dynamic=False)
    embed = torch.compile(_embed, backend=harness.COMPILER, dynamic=False)
    heads, eps = config.num_attention_heads, config.norm_eps

    def run() -> torch.Tensor:
        with torch.inference_mode():
            x = embed(packed_ids, model.embeddings.tok_embeddings.weight, model.embeddings.norm.weight, eps)
            for block in model.layers:
                weights = (
                    getattr(block.attn_norm, "weight", None), block.attn.Wqkv.weight, block.attn.Wo.weight,
                    block.mlp_norm.weight, block.mlp.Wi.weight, block.mlp.Wo.weight,
                )  # fmt: skip
                kind = block.attention_type
                x = run_layer(x, weights, *tables[kind], cu_seqlens, attends[kind], heads, eps)
            x = F.layer_norm(x, x.shape[1:], model.final_norm.weight, None, eps)
            return x.new_zeros(ids.numel(), x.shape[1]).index_copy_(0, indices, x).view(*ids.shape, -1)

    return run


def _embed(ids: torch.Tensor, table: torch.Tensor, norm: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(F.embedding(ids, table), table.shape[1:], norm, None, eps)


def _layer(
    x: torch.Tensor, weights: tuple, cos: torch.Tensor, sin: torch.Tensor, cu_seqlens: torch.Tensor, attend: Attend,
    heads: int, eps: float,
) -> torch.Tensor:  # fmt: skip
    attn_norm, Wqkv, Wo, mlp_norm, Wi, mlp_Wo = weights
    normed = x if attn_norm is None else F.layer_norm(x, x.shape[1:], attn_norm, None, eps)
    q, k, v = F.linear(normed, Wqkv).unflatten(1, (3, heads, -1)).unbind(1)
    q, k = (_rotate(t, cos, sin) for t in (q, k))
    x = x + F.linear(attend(q, k, v, cu_seqlens).flatten(1), Wo)
    a, b = F.linear(F.layer_norm(x, x.shape[1:], mlp_norm, None, eps), Wi).chunk(2, dim=-1)
    return x + F.linear(F.gelu(a) * b, mlp_Wo)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
