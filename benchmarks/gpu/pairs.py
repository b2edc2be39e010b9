"""Stock and accelerated models of one set of weights on the device, and batches for them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from gpu.sizes import Sizes
from transformers import AutoModel

import modernbert_fast as mf
from modernbert_fast.commands.batches import pad
from modernbert_fast.commands.models import random_model, twin
from modernbert_fast.commands.parity import Parity, parity_of_batch
from modernbert_fast.commands.workloads import Workload


@functools.lru_cache(maxsize=1)  # cases on one model stand together
def stock(sizes: Sizes, name: str) -> Any:
    """The encoder of transformers with random weights, sdpa, in eval mode."""
    model = random_model(AutoModel, sizes.models[name], sizes.dtype)
    model.set_attn_implementation("sdpa")
    return model.to(sizes.device).eval()


def fast(model: Any, **options: Any) -> Any:
    """An accelerated model on the same parameters."""
    return mf.accelerate(twin(model), **options)


def judge(model: Any, inputs: dict[str, torch.Tensor]) -> Parity:
    """The truth of a batch, from the stock model in a wider dtype."""
    ids = inputs["input_ids"]
    return parity_of_batch(model, ids, inputs.get("attention_mask", torch.ones_like(ids)))


def batch(config: Any, lengths: Sequence[int], device: torch.device) -> dict[str, torch.Tensor]:
    """Random ids (B, S), padded on the right; a mask only where something is padded."""
    workload = Workload("", tuple(lengths))
    inputs = pad(workload.ids(config.vocab_size), config.pad_token_id, device)
    return inputs if workload.padding else {"input_ids": inputs["input_ids"]}
