"""Which pieces of which documents make a micro-batch: shuffled anew every epoch, packed, the same on every rank."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modernbert_fast.packing import Packer, check_lengths

Item = tuple[int, int]  # (piece, epoch)
State = dict[str, NDArray[np.int64]]

SPECIAL_TOKENS = 2  # [CLS] and [SEP]
FILLER_EPOCH = -1
CHUNK = 256  # pieces that are packed at a time
OPEN_PIECES = 4096  # about so many wait in open bins


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
    a batch may hold pieces of two epochs. Batch i of the stream goes to rank i % world: together the ranks see what one
    process sees. Over `epochs` every piece comes exactly that often. Where the last round of batches is not full, the
    ranks that would get none get a filler, one piece with epoch -1: its key is negative, and what has a negative key
    has no labels (see masking.py).

    Args:
        piece_lengths: (M,) integers, tokens of each piece, special tokens included.
        tokens_per_batch: the capacity of a micro-batch, or a function from the number of the batch (in the order in
            which batches are begun, over all ranks) to it. It is asked again every 256 pieces.
        seed: of the order.
        rank, world: of this process, and how many there are.
        epochs: how often every piece comes; None is without end.
        open_bins: batches that are filled at once; by default enough for 4,096 pieces, from 8 to 256.

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
        open_bins: int | None = None,
    ) -> None:
        self._lengths = check_lengths(piece_lengths)
        self._capacity_of = tokens_per_batch if callable(tokens_per_batch) else lambda number: tokens_per_batch
        if not self._lengths.size:
            raise ValueError("no pieces to sample from")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be from 0 to world - 1 ({world - 1}), got {rank}")
        if seed < 0 or (epochs is not None and epochs < 1):
            raise ValueError(f"seed must not be negative and epochs at least 1, got {seed} and {epochs}")
        capacity, longest = self._capacity_of(0), int(self._lengths.argmax())
        if self._lengths[longest] > capacity:
            raise ValueError(f"piece {longest} has {self._lengths[longest]} tokens, a batch has room for {capacity}")
        if open_bins is None:
            open_bins = int(np.clip(OPEN_PIECES * self._lengths.mean() / capacity, 8, 256))
        self.seed, self.rank, self.world, self.epochs = seed, rank, world, epochs
        self._fingerprint = np.array([self._lengths.size, seed, zlib.crc32(self._lengths.data)])
        self._order: tuple[int, NDArray] = (-1, np.empty(0, np.int64))
        self._packer = Packer(open_bins)
        self._epoch = self._position = 0
        self._begin()

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
        return {**self._anchor, "taken": np.array(self._taken)}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Goes on from there.

        Raises:
            ValueError: when the state is of other pieces, another seed or other batches, or is damaged.
        """
        names = ("fingerprint", "epoch", "position", "capacity", "taken")
        if missing := [name for name in names if name not in state]:
            raise ValueError(f"not the state of a sampler: no {missing[0]!r}")
        if not np.array_equal(state["fingerprint"], self._fingerprint):
            raise ValueError("the state is of other pieces or of another seed")
        epoch, position, capacity, taken = (int(np.asarray(state[name]).item()) for name in names[1:])
        ended = epoch == self.epochs
        if min(epoch, position, taken) < 0 or position >= self._lengths.size or (ended and position):
            raise ValueError("not the state of a sampler: it stands nowhere")
        if self.epochs is not None and epoch > self.epochs:
            raise ValueError(f"the state is beyond the {self.epochs} epochs of this sampler")
        packer = Packer(self._packer.open_bins)
        packer.load_state_dict(state)
        expected = 0 if ended else self._capacity_of(packer.opened)
        if capacity != expected:
            raise ValueError(f"the state is of batches of {capacity} tokens, this sampler's have {expected}")
        self._packer, self._epoch, self._position = packer, epoch, position
        self._begin()
        for _ in range(taken):
            if self._draw() is None:
                raise ValueError("not the state of a sampler: more batches taken than there are")

    def _begin(self) -> None:
        self._ready: deque[NDArray[np.int64]] = deque()
        self._flushed = False
        self._set_anchor()

    def _set_anchor(self) -> None:
        """A state is this one, and how many batches were drawn since: what is saved stays small and cheap."""
        ended = self._epoch == self.epochs
        self._capacity = 0 if ended else self._capacity_of(self._packer.opened)
        numbers = {"epoch": self._epoch, "position": self._position, "capacity": self._capacity}
        self._anchor = {
            **self._packer.state_dict(),
            "fingerprint": self._fingerprint,
            **{name: np.array(number) for name, number in numbers.items()},
        }
        self._taken = 0

    def _draw(self) -> NDArray[np.int64] | None:
        """The next batch of the stream, (n,) epoch * M + piece; None at the end."""
        while not self._ready:
            if self._flushed:
                return None
            self._pack()
        self._taken += 1
        return self._ready.popleft()

    def _pack(self) -> None:
        """Packs the next chunk of an epoch, or what is left after the last."""
        self._set_anchor()
        if self._epoch == self.epochs:
            self._ready.extend(self._packer.flush())
            self._flushed = True
            return
        chunk = self._order_of(self._epoch)[self._position : self._position + CHUNK].astype(np.int64)
        items = self._epoch * self._lengths.size + chunk
        self._ready.extend(self._packer.add(items, self._lengths[chunk], self._capacity))
        self._position += CHUNK
        if self._position >= self._lengths.size:
            self._epoch, self._position = self._epoch + 1, 0

    def _order_of(self, epoch: int) -> NDArray:
        """(M,) pieces. Sorted raw draws: unlike its permutations, they are the same in every NumPy."""
        if self._order[0] != epoch:
            draws = np.random.PCG64DXSM([self.seed, epoch]).random_raw(self._lengths.size)
            dtype = np.uint32 if self._lengths.size <= 2**32 else np.int64
            self._order = epoch, draws.argsort(kind="stable").astype(dtype)
        return self._order[1]
