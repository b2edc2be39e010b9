"""Collated micro-batches from a packed sampler, by worker processes, resumable to the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import DataLoader

from modernbert_fast.training.sampler import Item, PackedSampler, State

Feature = dict[str, Any]
Batch = dict[str, Any]
Collate = Callable[[Sequence[Feature]], Batch]


class PieceDataset(Protocol):
    """What a loader reads: `lengths` (M,) tokens of each piece, and a feature for (piece, epoch).

    A feature holds `input_ids` (n,) with special tokens, `key` (an int of its own for each piece and epoch, negative
    where the epoch is) and what the objective adds.
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
        workers: processes; 0 collates in this one. They live as long as the loader.
        prefetch: batches that each worker prepares ahead.
        pin_memory: as for DataLoader.
    """

    def __init__(
        self,
        dataset: PieceDataset,
        sampler: PackedSampler,
        collate: Collate,
        workers: int = 0,
        *,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self._drawn = _Drawn(sampler)
        self._loader: DataLoader = DataLoader(
            _Collated(dataset, collate),  # type: ignore[arg-type]
            sampler=self._drawn,
            batch_size=None,  # an item is a batch already
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # its draws for workers must not move torch's own
        )

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            self._drawn.state = self._drawn.ahead.popleft()
            yield batch

    def state_dict(self) -> State:
        """The sampler's state after the last batch that was handed out: plain arrays, for np.savez."""
        return self._drawn.state

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """The next iteration goes on after that batch, bit for bit. One that is under way has to be left.

        Raises:
            ValueError: when the sampler refuses the state.
        """
        self._drawn.sampler.load_state_dict(state)
        self._drawn.state = {name: np.asarray(value) for name, value in state.items()}


class _Drawn:
    """The sampler's batches from a state on; the states after those that are not yet handed out wait in `ahead`."""

    def __init__(self, sampler: PackedSampler) -> None:
        self.sampler = sampler
        self.state = sampler.state_dict()
        self.ahead: deque[State] = deque()

    def __iter__(self) -> Iterator[list[Item]]:
        self.sampler.load_state_dict(self.state)
        self.ahead.clear()
        for batch in self.sampler:
            self.ahead.append(self.sampler.state_dict())
            yield batch


class _Collated:
    """A dataset of batches, read where a worker runs."""

    def __init__(self, dataset: PieceDataset, collate: Collate) -> None:
        self.dataset = dataset
        self.collate = collate

    def __getitem__(self, items: list[Item]) -> Batch:
        return self.collate([self.dataset[item] for item in items])
