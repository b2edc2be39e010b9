"""Which pieces of which documents make a micro-batch: shuffled anew every epoch, packed, the same on every rank."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modernbert_fast.packing import Packer, check_lengths

Item = tuple[int, int]  # (piece, epoch)
State = dict[str, NDArray[np.int64]]

SPECIAL_TOKENS = 2  # [CLS] and [SEP]
FILLER_EPOCH = -1
CHUNK = 256  # pieces that go to the packer at a time


def pieces(lengths: ArrayLike, max_length: int) -> NDArray[np.int64]:
    """Cuts documents into pieces that fit max_length tokens with [CLS] and [SEP] around them.

    Args:
        lengths: (N,) integers, tokens of each document without special tokens; an empty one gives no piece.
        max_length: tokens of a piece, special tokens included; at least 3.

    Returns:
        (M, 3) int64: document, start, stop, in the order of the documents; all but a document's last are full.

    Raises:
        ValueError: when a length is negative or not an integer, or max_length is below 3.
    """
    checked = check_lengths(lengths)
    room = max_length - SPECIAL_TOKENS
    if room < 1:
        raise ValueError(f"max_length must be at least {SPECIAL_TOKENS + 1}, got {max_length}")
    counts = -(-checked // room)
    documents = np.repeat(np.arange(checked.size), counts)
    starts = (np.arange(documents.size) - np.repeat(np.cumsum(counts) - counts, counts)) * room
    return np.stack([documents, starts, np.minimum(starts + room, checked[documents])], axis=1)


class PackedSampler:
    """Micro-batches of at most tokens_per_batch tokens, in one stream that all ranks share.

    The order of an epoch comes from NumPy's PCG64DXSM of (seed, epoch) alone. Its pieces stream through a Packer, so
    a batch may hold pieces of two epochs, and a piece twice where both epochs wait; of more than two where it has room
    for a whole epoch. Batch i of the stream goes to rank i % world: together the ranks see what one
    process sees. Over `epochs` every piece comes exactly that often. Where the last round of batches is not full, the
    ranks that would get none get a filler, one piece with epoch -1: its key is negative, and what has a negative key
    has no labels (see masking.py).

    Args:
        piece_lengths: (M,) integers, tokens of each piece, special tokens included.
        tokens_per_batch: the capacity of a micro-batch, or a function from the number of the batch in the stream (0
            first, over all ranks) to it.
        seed: of the order.
        rank, world: of this process, and how many there are.
        epochs: how often every piece comes; None is without end.
        lookahead: pieces that a batch is chosen from: more of them waste less room. Never more than an epoch has.

    Raises:
        ValueError: when there is no piece, one is longer than a batch, or a number is out of its range.
    """

    def __init__(
        self,
        piece_lengths: ArrayLike,
        tokens_per_batch: int | Callable[[int], int],
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        epochs: int | None = None,
        lookahead: int = 2048,
    ) -> None:
        self._lengths = check_lengths(piece_lengths)
        self._capacity_of = tokens_per_batch if callable(tokens_per_batch) else lambda number: tokens_per_batch
        if not self._lengths.size:
            raise ValueError("no pieces to sample from")
        if not self._lengths.all():
            raise ValueError(f"piece {int(self._lengths.argmin())} has no tokens")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be from 0 to world - 1 ({world - 1}), got {rank}")
        if seed < 0 or (epochs is not None and epochs < 1):
            raise ValueError(f"seed must not be negative and epochs at least 1, got {seed} and {epochs}")
        capacity, longest = self._capacity_of(0), int(self._lengths.argmax())
        if self._lengths[longest] > capacity:
            raise ValueError(f"piece {longest} has {self._lengths[longest]} tokens, a batch has room for {capacity}")
        self.seed, self.rank, self.world, self.epochs = seed, rank, world, epochs
        self._fingerprint = np.array([self._lengths.size, seed, zlib.crc32(self._lengths.data)])
        self._order: tuple[int, NDArray] = (-1, np.empty(0, np.int64))
        self._packer = Packer(min(lookahead, self._lengths.size))
        self._batches = self._epoch = self._position = 0

    def __iter__(self) -> Iterator[list[Item]]:
        """The batches of this rank, from where the sampler is on: lists of (piece, epoch)."""
        while drawn := [batch for _ in range(self.world) if (batch := self._draw()) is not None]:
            if self.rank < len(drawn):
                epochs, chosen = np.divmod(drawn[self.rank], self._lengths.size)
                yield list(zip(chosen.tolist(), epochs.tolist(), strict=True))
            else:
                yield [(int(self._lengths.argmin()), FILLER_EPOCH)]

    def state_dict(self) -> State:
        """Where the stream is, as plain arrays; the same on every rank, and good for another number of ranks."""
        place = np.array([self._batches, self._epoch, self._position])
        return {**self._packer.state_dict(), "place": place, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Goes on from there.

        Raises:
            ValueError: when the state is of other pieces or another seed, is beyond the epochs, or is damaged.
        """
        if missing := [name for name in ("fingerprint", "place") if name not in state]:
            raise ValueError(f"not the state of a sampler: no {missing[0]!r}")
        if not np.array_equal(state["fingerprint"], self._fingerprint):
            raise ValueError("the state is of other pieces or of another seed")
        place = np.asarray(state["place"])
        if place.dtype != np.int64 or place.shape != (3,) or place.min() < 0 or place[2] >= self._lengths.size:
            raise ValueError(f"not the state of a sampler: it stands at {place}")
        batches, epoch, position = place.tolist()
        if self.epochs is not None and (epoch, position) > (self.epochs, 0):
            raise ValueError(f"the state is in epoch {epoch}, beyond the {self.epochs} of this sampler")
        packer = Packer(self._packer.lookahead)
        packer.load_state_dict(state)
        items, lengths = np.asarray(state["items"]), np.asarray(state["lengths"])
        if items.size and (items.min() < 0 or (self._lengths[items % self._lengths.size] != lengths).any()):
            raise ValueError("not the state of a sampler: pieces that wait have other lengths")
        self._packer, self._batches, self._epoch, self._position = packer, batches, epoch, position

    def _draw(self) -> NDArray[np.int64] | None:
        """The next batch of the stream, (n,) epoch * M + piece; None at the end."""
        capacity = self._capacity_of(self._batches)
        while (batch := self._packer.take(capacity, last=self._epoch == self.epochs)) is None:
            if self._epoch == self.epochs:
                return None
            chunk = self._order_of(self._epoch)[self._position : self._position + CHUNK].astype(np.int64)
            self._packer.add(self._epoch * self._lengths.size + chunk, self._lengths[chunk])
            self._position += CHUNK
            if self._position >= self._lengths.size:
                self._epoch, self._position = self._epoch + 1, 0
        self._batches += 1
        return batch

    def _order_of(self, epoch: int) -> NDArray:
        """(M,) pieces. Sorted raw draws: unlike its permutations, they are the same in every NumPy."""
        if self._order[0] != epoch:
            draws = np.random.PCG64DXSM([self.seed, epoch]).random_raw(self._lengths.size)
            dtype = np.uint32 if self._lengths.size <= 2**32 else np.int64
            self._order = epoch, draws.argsort(kind="stable").astype(dtype)
        return self._order[1]
