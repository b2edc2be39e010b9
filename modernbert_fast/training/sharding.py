"""FSDP2 of a ModernBERT: its layers and its root, on any device that torch.distributed serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed.checkpoint.state_dict as states
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard


def shard(model: Any) -> None:
    """Spreads the parameters over the ranks, in place; each layer is gathered when it runs."""
    encoders = [module for module in model.modules() if hasattr(module, "layers") and hasattr(module, "final_norm")]
    for encoder in encoders:
        for layer in encoder.layers:
            fully_shard(layer)
    fully_shard(model)


def gathered(model: Any) -> dict[str, Any]:
    """The whole state dict, on the CPU of rank 0; every rank calls it."""
    options = states.StateDictOptions(full_state_dict=True, cpu_offload=True)
    return states.get_model_state_dict(model, options=options)


def load(model: Any, folder: Path) -> None:
    """Weights of a checkpoint into a sharded model; every rank reads the file and keeps its share."""
    weights: dict[str, Any] = load_file(folder / "model.safetensors")
    options = states.StateDictOptions(full_state_dict=True, strict=False)  # a tied decoder is not in the file
    states.set_model_state_dict(model, weights, options=options)
