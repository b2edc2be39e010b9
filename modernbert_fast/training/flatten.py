"""Texts of a batch laid end to end, as accelerated models take them: no padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike


def flatten(texts: Sequence[ArrayLike]) -> dict[str, Any]:
    """One row of all texts, with their bounds under the names that transformers gives them.

    Args:
        texts: token ids, each (n,) with n >= 1, special tokens included.

    Returns:
        input_ids and position_ids (1, T) int64, cu_seq_lens_q and cu_seq_lens_k (B + 1,) int32, max_length_q and
        max_length_k int.

    Raises:
        ValueError: when there is no text, or one is empty or not one-dimensional.
    """
    arrays = [np.asarray(text, np.int64) for text in texts]
    if not arrays:
        raise ValueError("a batch needs at least one text")
    for number, array in enumerate(arrays):
        if array.ndim != 1 or array.size == 0:
            raise ValueError(f"text {number} has shape {array.shape}, expected (n,) with n of at least 1")
    lengths = np.array([array.size for array in arrays], np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
    cu_seqlens = torch.from_numpy(bounds.astype(np.int32))
    longest = int(lengths.max())
    return {
        "input_ids": torch.from_numpy(np.concatenate(arrays))[None],
        "position_ids": torch.from_numpy(positions)[None],
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": longest,
        "max_length_k": longest,
    }
