"""Longer texts for a trained model: more positions, another rope base of the global layers, the weights as they are."""

from __future__ import annotations

import copy
from typing import Any

from modernbert_fast.config import FULL, EncoderConfig


def extended_config(config: Any, max_length: int, rope_theta: float) -> Any:
    """A transformers ModernBertConfig for texts of max_length tokens; give it to from_pretrained with the old weights.

    Rotary frequencies are computed from it, so nothing in the weights changes. Local layers keep their base.

    Args:
        config: of the trained model.
        max_length: positions.
        rope_theta: base of the global layers: 10,000 for 1,024 tokens and 160,000 for 8,192 in the paper.

    Raises:
        ValueError: a value is out of its range.
    """
    extended = copy.deepcopy(config)
    extended.max_position_embeddings = max_length
    extended.rope_parameters[FULL]["rope_theta"] = rope_theta
    EncoderConfig.from_hf(extended)  # checks the values
    return extended
