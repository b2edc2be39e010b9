"""Rotary frequencies of a layer type, of every rope type that does not depend on the length of the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from modernbert_fast.config import LAYER_TYPES, EncoderConfig
from modernbert_fast.untrusted import choice


def inv_freq(config: EncoderConfig, layer_type: str) -> tuple[torch.Tensor, float]:
    """Rotary frequencies of a layer type, bit for bit those of transformers.

    Args:
        config: the encoder's configuration.
        layer_type: "full_attention" or "sliding_attention".

    Returns:
        inv_freq (head_dim / 2,) fp32 on the CPU, in radians per position; and the factor for cos and sin.

    Raises:
        NotImplementedError: the rope type depends on the length of the batch (dynamic, longrope).
    """
    choice("layer_types", layer_type, LAYER_TYPES)
    rope, dim = config.rope_parameters[layer_type], config.head_dim
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    wavelength = rope["rope_theta"] ** exponent  # positions per radian
    match rope["rope_type"]:
        case "default":
            return 1.0 / wavelength, 1.0
        case "linear":
            return 1.0 / wavelength / rope["factor"], 1.0
        case "proportional":
            turning = int(rope.get("partial_rotary_factor", 1.0) * dim // 2)
            freq = torch.zeros_like(exponent)
            # Not a slice of `wavelength`: a vectorised power may round its last few elements differently.
            freq[:turning] = 1.0 / rope["rope_theta"] ** exponent[:turning]
            return freq / rope.get("factor", 1.0), 1.0
        case "llama3":
            return _llama3(1.0 / wavelength, rope), 1.0
        case "yarn":
            stretch = config.max_position_embeddings / rope["original_max_position_embeddings"]
            factor = rope.get("factor", stretch)
            return _yarn(wavelength, factor, rope), _yarn_attention_factor(factor, rope)
    raise NotImplementedError(
        f"rope type {rope['rope_type']!r} ({layer_type}) depends on the length of the batch, not supported"
    )


def _llama3(freq: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    """Slow frequencies divided by `factor`, fast ones kept, a linear blend between."""
    length = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    period = 2 * math.pi / freq
    keep = (length / period - low) / (high - low)
    blend = (1 - keep) * freq / rope["factor"] + keep * freq
    slow = torch.where(period > length / low, freq / rope["factor"], blend)
    return torch.where(period < length / high, freq, slow)


def _yarn(wavelength: torch.Tensor, factor: float, rope: Mapping[str, Any]) -> torch.Tensor:
    """Dimensions that turn often keep their frequency, rare ones are divided by `factor`, a ramp between."""
    half = len(wavelength)
    dim = 2 * half

    def dimension(turns: float) -> float:
        """The dimension that makes `turns` full turns over the original length."""
        return (dim * math.log(rope["original_max_position_embeddings"] / (turns * 2 * math.pi))) / (
            2 * math.log(rope["rope_theta"])
        )

    # The bounds are always rounded: transformers does not see `truncate` where parameters are per layer type.
    low: float = max(math.floor(dimension(rope.get("beta_fast") or 32)), 0)
    high: float = min(math.ceil(dimension(rope.get("beta_slow") or 1)), dim - 1)
    if low == high:
        high += 0.001
    ramp = torch.clamp((torch.arange(half, dtype=torch.float32, device="cpu") - low) / (high - low), 0, 1)
    keep = 1 - ramp
    return 1.0 / (factor * wavelength) * (1 - keep) + 1.0 / wavelength * keep


def _yarn_attention_factor(factor: float, rope: Mapping[str, Any]) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if "attention_factor" in rope:
        return rope["attention_factor"]
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(rope["mscale"]) / mscale(rope["mscale_all_dim"])
    return mscale(1)
