"""The thin encoder on packed tokens. The same functions drive transformers' modules and our own: the trees are alike.

Life of a layer: norm, Wqkv, attention (rotary inside), Wo, add + norm, Wi, GeGLU, Wo. The last add of a layer waits
for the norm of the next, unless somebody looks at what the layer returns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modernbert_fast import modules, one_call, ops
from modernbert_fast.batch import PackedBatch
from modernbert_fast.config import EncoderConfig
from modernbert_fast.frequencies import inv_freq
from modernbert_fast.geometry import Geometry
from modernbert_fast.ops.encoder_layer import one_call_serves


@dataclass(frozen=True, eq=False)
class LayerKind:
    """What layers of one type share: window (-1 is global) and rotary tables (P, D / 2)."""

    window: int
    cos: torch.Tensor
    sin: torch.Tensor

    def geometry(self, batch: PackedBatch, head_dim: int) -> Geometry:
        """What attention in a layer of this type takes besides qkv."""
        return Geometry(
            batch.cu_seqlens,
            batch.positions,
            self.cos,
            self.sin,
            batch.columns,
            batch.attended,
            batch.tiles,
            batch.max_seqlen,
            self.window,
            head_dim**-0.5,
        )


@dataclass(frozen=True, eq=False)
class Packed:
    """All that a layer needs besides its input."""

    batch: PackedBatch
    kinds: Mapping[str, LayerKind]


@torch.compiler.disable
def prepare(config: EncoderConfig, batch: PackedBatch, dtype: torch.dtype) -> Packed:
    """The batch with windows and rotary tables; `dtype` is that of the activations."""
    table_dtype = torch.promote_types(dtype, torch.float32)
    device = batch.cu_seqlens.device
    kinds = {}
    if batch.max_position <= max(config.max_position_embeddings, batch.shape[1]):
        length = max(512, 1 << max(batch.max_position - 1, 0).bit_length())
        for kind in sorted(set(config.layer_types)):
            kinds[kind] = LayerKind(config.window(kind), *_shared_tables(config, kind, length, device, table_dtype))
    else:  # positions far beyond the texts: tables of the tokens' own positions, not of all up to the largest
        own = batch.positions.cpu()
        for kind in sorted(set(config.layer_types)):
            kinds[kind] = LayerKind(config.window(kind), *_tables(config, kind, own, device, table_dtype))
        rows = torch.arange(own.shape[0], dtype=torch.int32, device=device)
        batch = dataclasses.replace(batch, positions=rows, max_position=own.shape[0])
    return Packed(batch, kinds)


@functools.lru_cache(maxsize=32)
def _shared_tables(
    config: EncoderConfig, kind: str, length: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    return _tables(config, kind, torch.arange(length), device, dtype)


def _tables(
    config: EncoderConfig, kind: str, positions: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (P, D / 2) of positions (P,): angles in fp32 from the config, whatever the model was cast to."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        frequencies, scaling = inv_freq(config, kind)
        angles = positions.float()[:, None] * frequencies
        return (angles.cos() * scaling).to(device, dtype), (angles.sin() * scaling).to(device, dtype)


def project(linear: Any, x: torch.Tensor) -> torch.Tensor:
    """A linear layer on packed rows: (T, K) -> (T, N); anything but a plain nn.Linear is called as it is."""
    if modules.multiplies(linear, x):
        return ops.linear(x, linear.weight, linear.bias)
    return linear(x)


def norm(layer_norm: Any, x: torch.Tensor) -> torch.Tensor:
    """A norm on packed rows: (T, C) -> (T, C)."""
    if modules.is_plain(layer_norm, nn.LayerNorm):
        return ops.layer_norm(x, layer_norm.weight, layer_norm.bias, layer_norm.eps)
    return layer_norm(x)


def add_norm(layer_norm: Any, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual add and norm, in one pass where the norm is plain: returns (normed, sum), both (T, C)."""
    if modules.is_plain(layer_norm, nn.LayerNorm):
        return ops.add_layer_norm(x, residual, layer_norm.weight, layer_norm.bias, layer_norm.eps)
    total = residual + x
    return layer_norm(total), total


def embed(embeddings: Any, ids: Any, inputs_embeds: torch.Tensor | None = None) -> torch.Tensor:
    """ids (T,) or inputs_embeds (T, C) -> (T, C), normed."""
    table, layer_norm = embeddings.tok_embeddings, embeddings.norm
    if inputs_embeds is not None:
        x = norm(layer_norm, inputs_embeds)
    elif modules.is_plain(layer_norm, nn.LayerNorm) and modules.only_gathers(table):
        x = ops.embed_layer_norm(
            ids, table.weight, layer_norm.weight, layer_norm.bias, layer_norm.eps, table.padding_idx
        )
    else:
        x = norm(layer_norm, table(ids[None])[0])  # (1, T): hooks on embeddings expect a batch
    return embeddings.drop(x)


def gated(mlp: Any, x: torch.Tensor, activation: str) -> torch.Tensor:
    """(T, C) -> (T, F): Wi, and the activated first half of its result times the second."""
    exact = modules.is_exact_gelu(mlp, activation)
    if exact and modules.multiplies(mlp.Wi, x):
        return ops.linear_geglu(x, mlp.Wi.weight, mlp.Wi.bias)
    x = project(mlp.Wi, x)
    if exact:
        return ops.geglu(x)
    a, b = x.chunk(2, dim=-1)
    return mlp.act(a) * b


def layer(
    block: Any, x: torch.Tensor, residual: torch.Tensor | None, packed: Packed, defer: bool
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """One encoder layer.

    Args:
        block: the layer's module.
        x: (T, C), the output of the layer before; without its residual where that comes apart.
        residual: (T, C) to be added to x, or None.
        packed: batch, windows, rotary tables.
        defer: return (x, residual) apart, for the next norm to add.
    """
    attn, kind, batch = block.attn, packed.kinds[block.attention_type], packed.batch
    one_call = one_call_serves(x, residual, attn.head_dim, batch.attended)
    if one_call and (weights := modules.layer_weights(block, x, residual)):
        x, residual = ops.encoder_layer(x, residual, weights, attn.head_dim, kind.geometry(batch, attn.head_dim))
        return (x, residual) if defer else residual + x
    if residual is None:
        normed, residual = norm(block.attn_norm, x), x
    else:
        normed, residual = add_norm(block.attn_norm, x, residual)
    # Each input is dropped once its step is done: at 8,192 tokens it is tens of megabytes.
    qkv = project(attn.Wqkv, normed).unflatten(-1, (3, -1, attn.head_dim))
    del normed
    o = ops.attention(
        qkv,
        batch.cu_seqlens,
        batch.max_seqlen,
        window=kind.window,
        positions=batch.positions,
        cos=kind.cos,
        sin=kind.sin,
        columns=batch.columns,
        attended=batch.attended,
        tiles=batch.tiles,
    )
    del qkv
    attended = attn.out_drop(project(attn.Wo, o.flatten(1)))
    del o
    normed, residual = add_norm(block.mlp_norm, attended, residual)
    del attended
    mlp = block.mlp
    inner = mlp.drop(gated(mlp, normed, block.config.hidden_activation))
    del normed
    x = project(mlp.Wo, inner)
    del inner
    return (x, residual) if defer else residual + x


def encode(
    model: Any,
    packed: Packed,
    ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None = None,
    states: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Runs the encoder on packed tokens.

    Args:
        model: has embeddings, layers and final_norm, ours or transformers'.
        packed: from `prepare`.
        ids: (T,) token ids, or None with inputs_embeds (T, C).
        states: collects the input of every layer, (T, C) each, and the final output.

    Returns:
        (T, C) after the final norm.
    """
    x, residual = model.embeddings(ids, inputs_embeds), None
    one_calls = one_call.layers(model, x, packed.batch.attended) if states is None else None
    for weights, head_dim, kind in one_calls or ():
        geometry = packed.kinds[kind].geometry(packed.batch, head_dim)
        x, residual = ops.encoder_layer(x, residual, weights, head_dim, geometry)
    for block in model.layers if one_calls is None else ():
        if states is None and modules.is_untouched(block):
            x, residual = block(x, residual, packed=packed, defer=True)
            continue
        x = x if residual is None else residual + x
        if states is not None:
            states.append(x)
        x, residual = block(x, packed=packed), None
    x = norm(model.final_norm, x) if residual is None else add_norm(model.final_norm, x, residual)[0]
    if states is not None:
        states.append(x)
    return x
