"""Layers that are one call each: which they are, asked of the modules once and kept as long as nothing changes."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch

from modernbert_fast import modules, ops
from modernbert_fast.ops.encoder_layer import one_call_serves
from modernbert_fast.watch import Watch


class Layer(NamedTuple):
    """What a layer that is one call takes besides its input and the batch."""

    weights: ops.Weights
    head_dim: int
    kind: str  # of its attention


def weights_of_layers(model: Any, x: torch.Tensor) -> list[Layer] | None:
    """The layers if each may be one call on input of the dtype and device of x; None if one may not."""
    found = []
    for i, block in enumerate(model.layers):
        weights = modules.layer_weights(block, x, x if i else None) if modules.is_untouched(block) else None
        if weights is None:
            return None
        found.append(Layer(weights, block.attn.head_dim, block.attention_type))
    return found


class _Known(NamedTuple):
    watch: Watch
    dtype: torch.dtype
    layers: list[Layer] | None


_known: weakref.WeakKeyDictionary[Any, _Known] = weakref.WeakKeyDictionary()


def layers(model: Any, x: torch.Tensor, attended: torch.Tensor | None) -> list[Layer] | None:
    """As weights_of_layers, which is asked again only once the model is no longer what it was."""
    if torch.is_autocast_enabled(x.device.type):
        return None
    if not one_call_serves(x, None, model.layers[0].attn.head_dim, attended):
        return None
    known = _known.get(model)
    if known is None or known.dtype != x.dtype or not known.watch.sees_the_same(model):
        _known[model] = known = _Known(Watch(model), x.dtype, weights_of_layers(model, x))
    return known.layers
