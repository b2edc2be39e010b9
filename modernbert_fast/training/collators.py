"""Collators that lay the texts of a batch end to end: features in, keyword arguments of an accelerated model out.

They are plain functions for `data_collator` of any transformers.Trainer. A feature has `input_ids` and what its
collator names; everything else in it is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from modernbert_fast import heads
from modernbert_fast.training.flatten import flatten

LABELS = ("labels", "label", "label_ids")


def collate_texts(features: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sequence classification: one label a text, under any name of LABELS, or none.

    Returns:
        flatten() of the texts, and labels (B,) int64 of integers or bools, (B,) float32 of floats, (B, K) of rows.
    """
    batch = flatten([feature["input_ids"] for feature in features])
    name = _label_name(features)
    if name is not None:
        labels = np.asarray([feature[name] for feature in features])
        batch["labels"] = torch.from_numpy(labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64))
    return batch


def collate_tokens(features: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Token classification: `labels` as long as `input_ids`, heads.IGNORE where there is none.

    Returns:
        flatten() of the texts, and labels (1, T) int64.

    Raises:
        ValueError: a text has more or fewer labels than tokens.
    """
    batch = flatten([feature["input_ids"] for feature in features])
    name = _label_name(features)
    if name is not None:
        for number, feature in enumerate(features):
            if len(feature[name]) != len(feature["input_ids"]):
                given = f"{len(feature[name])} labels for {len(feature['input_ids'])} tokens"
                raise ValueError(f"text {number} of the batch has {given}")
        batch["labels"] = torch.from_numpy(np.concatenate([np.asarray(f[name], np.int64) for f in features]))[None]
    return batch


def collate_spans(features: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Question answering: `start_positions` and `end_positions`, tokens of each text counted from 0, or none.

    Returns:
        flatten() of the texts, and start_positions and end_positions (B,) int64.
    """
    batch = flatten([feature["input_ids"] for feature in features])
    for name in ("start_positions", "end_positions"):
        if name in features[0]:
            batch[name] = torch.tensor([feature[name] for feature in features])
    return batch


def collate_choices(features: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Multiple choice: `input_ids` holds the texts of all choices of an example, as many in each; a label or none.

    Returns:
        flatten() of B * num_choices texts, its ids and positions (1, 1, T); num_choices; labels (B,) int64.

    Raises:
        ValueError: examples differ in their number of choices.
    """
    counts = {len(feature["input_ids"]) for feature in features}
    if len(counts) != 1:
        raise ValueError(f"examples of one batch have {sorted(counts)} choices; one number was expected")
    batch = flatten([choice for feature in features for choice in feature["input_ids"]])
    for name in ("input_ids", "position_ids"):
        batch[name] = batch[name][None]
    batch["num_choices"] = counts.pop()
    label = _label_name(features)
    if label is not None:
        batch["labels"] = torch.tensor([int(feature[label]) for feature in features])
    return batch


def a_row_a_text(flat: torch.Tensor, cu_seqlens: torch.Tensor, fill: int = heads.IGNORE) -> torch.Tensor:
    """What a flattened batch gave each token, (1, T, ...), as (B, S, ...) with `fill` beyond a text's end."""
    lengths = cu_seqlens.diff().tolist()
    return torch.nn.utils.rnn.pad_sequence(flat[0].split(lengths), batch_first=True, padding_value=fill)


def _label_name(features: Sequence[dict[str, Any]]) -> str | None:
    return next((name for name in LABELS if features and features[0].get(name) is not None), None)
