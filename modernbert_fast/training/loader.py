"""Collated micro-batches from a packed sampler, by worker processes, resumable to the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from modernbert_fast.training.sampler import Item, PackedSampler

Feature = dict[str, Any]
Batch = dict[str, Any]


class PieceDataset(Protocol):
    """What a loader reads: `lengths` (M,) tokens of each piece, and a feature for (piece, epoch).

    A feature holds `input_ids` (n,) with special tokens, `key` (an int of its own for each piece and epoch) and what
    the objective adds.
    """

    @property
    def lengths(self) -> np.ndarray: ...

    def __getitem__(self, item: Item) -> Feature: ...


class PackedLoader:
    """Iterates over collated micro-batches; torch's DataLoader does the work.

    `state_dict()` is the state after the last batch that the caller got, whatever workers have prefetched; an
    iteration that is left and begun again goes on after that batch.

    Args:
        dataset: gives a feature for (piece, epoch).
        sampler: its batches.
        collate: from features to a batch of tensors.
        workers: processes; 0 collates in this one.
        prefetch: batches that each worker prepares ahead.
        pin_memory: as for DataLoader.
    """

    def __init__(
        self,
        dataset: PieceDataset,
        sampler: PackedSampler,
        collate: Callable[[Sequence[Feature]], Batch],
        workers: int = 0,
        *,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, np.ndarray]:
        """The sampler's state after the last batch that was handed out: plain arrays, for np.savez."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Goes on after that batch, bit for bit. Takes effect when the next iteration begins."""
        raise NotImplementedError
