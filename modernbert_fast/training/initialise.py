"""A larger model's start from a smaller, trained one: its matrices in the middle, wrapped around at the rims."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from modernbert_fast.config import EncoderConfig

_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.(.+)")


def from_smaller(
    state: Mapping[str, torch.Tensor], small: EncoderConfig, fresh: Mapping[str, torch.Tensor], large: EncoderConfig
) -> dict[str, torch.Tensor]:
    """The state dict of a larger model, filled from that of a smaller one.

    Widths are centre tiled: the small matrix lies in the middle of the large one, and the rims repeat it from its other
    side. Heads are moved whole. A matrix whose inputs were widened is scaled by small / large, so that doubling every
    width leaves the outputs as they were. Depth: the k-th of n global layers comes from the (k * m // n)-th of the
    small model's m global ones, and so for local ones, which keeps the order of layers.

    Args:
        state: the small model's.
        small: its config.
        fresh: the large model's state dict, newly initialised: gives names and shapes, and what the small model lacks.
        large: its config.

    Raises:
        ValueError: the large model is smaller somewhere, or has another vocabulary or head dim; names key or tensor.
    """
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"):
        if getattr(small, key) > getattr(large, key):
            raise ValueError(f"{key} shrinks from {getattr(small, key)} to {getattr(large, key)}")
    for key in ("vocab_size", "head_dim"):
        if getattr(small, key) != getattr(large, key):
            raise ValueError(f"{key} must stay {getattr(small, key)}, got {getattr(large, key)}")
    layers = _layer_map(small, large)
    filled = {}
    for name, empty in fresh.items():
        source = _source(name, layers)
        if source not in state:
            filled[name] = empty  # the first layer has no attn_norm; an order head may be new
            continue
        tensor = _widened(name, state[source], small, large)
        if tensor.shape != empty.shape:
            raise ValueError(
                f"{name!r} is {tuple(empty.shape)} in the large model, {source!r} gives {tuple(tensor.shape)}"
            )
        filled[name] = tensor.to(empty.dtype)
    return filled


def _layer_map(small: EncoderConfig, large: EncoderConfig) -> list[int]:
    """For each layer of the large model, the small one's that it comes from."""
    mapped = [0] * large.num_hidden_layers
    for kind in set(large.layer_types):
        theirs = [i for i, other in enumerate(small.layer_types) if other == kind]
        ours = [i for i, other in enumerate(large.layer_types) if other == kind]
        if not theirs:
            raise ValueError(f"the small model has no layer of type {kind!r}")
        for k, layer in enumerate(ours):
            mapped[layer] = theirs[k * len(theirs) // len(ours)]
    return mapped


def _source(name: str, layers: list[int]) -> str:
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    return name[: match.start(1)] + f"{layers[int(match[1])]}." + match[2]


def _widened(name: str, tensor: torch.Tensor, small: EncoderConfig, large: EncoderConfig) -> torch.Tensor:
    """One tensor at the large model's widths."""
    C, F, H = (large.hidden_size, large.intermediate_size, large.num_attention_heads)
    narrower = small.hidden_size / C
    module, _, kind = name.rpartition(".")
    module = module.rpartition(".")[2]
    if kind == "bias" and module == "decoder" or name.startswith("order_classifier") and kind == "bias":
        return tensor  # one value a token or a class
    if module == "Wqkv":  # (3 H D, C)
        parts = _tiled(tensor.unflatten(0, (3, small.num_attention_heads, small.head_dim)), 1, H).flatten(0, 2)
    elif module == "Wi":  # (2 F, C)
        parts = _tiled(tensor.unflatten(0, (2, small.intermediate_size)), 1, F).flatten(0, 1)
    elif module in ("tok_embeddings", "decoder", "order_classifier"):
        parts = tensor  # rows are ids or classes
    else:
        parts = _tiled(tensor, 0, C)
    if module == "norm" and name.startswith("head."):
        return parts * narrower  # the decoder, tied to the embeddings, cannot be scaled itself
    if tensor.dim() == 1:
        return parts
    if module == "Wo" and ".mlp." in name:
        return _tiled(parts, 1, F) * (small.intermediate_size / F)
    if module == "Wo":
        heads = parts.unflatten(1, (small.num_attention_heads, small.head_dim))
        return _tiled(heads, 1, H).flatten(1) * (small.num_attention_heads / H)
    scale = 1.0 if module in ("tok_embeddings", "decoder") else narrower
    return _tiled(parts, 1, C) * scale


def _tiled(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """Centre tiling of one axis."""
    small = tensor.shape[dim]
    index = (torch.arange(size) - (size - small) // 2) % small
    return tensor.index_select(dim, index)
