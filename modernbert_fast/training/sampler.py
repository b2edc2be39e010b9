"""Which pieces of which documents make a micro-batch: shuffled anew every epoch, packed, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Item = tuple[int, int]  # (piece, epoch)


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
    raise NotImplementedError


class PackedSampler:
    """Micro-batches of at most tokens_per_batch tokens, in one stream that all ranks share.

    The order of an epoch comes from NumPy's PCG64DXSM of (seed, epoch) alone. Its pieces stream through a Packer, so
    a batch may hold pieces of two epochs; batch i of the stream goes to rank i % world, and the ranks together see
    what one process sees. Over `epochs` every piece comes exactly that often. Where the last round of batches is not
    full, the ranks that would get none get a filler: one piece with epoch -1, whose labels PackedLoader sets to -100.

    Args:
        piece_lengths: (M,) integers, tokens of each piece, special tokens included.
        tokens_per_batch: the capacity of a micro-batch, or a function from the number of the batch (in the order in
            which batches are begun, over all ranks) to it. It is asked again every 256 pieces.
        seed: of the order.
        rank, world: of this process, and how many there are.
        epochs: how often every piece comes; None is without end.
        open_bins: batches that are filled at once.

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
        open_bins: int = 64,
    ) -> None:
        raise NotImplementedError

    def __iter__(self) -> Iterator[list[Item]]:
        """The batches of this rank, from where the sampler is on: lists of (piece, epoch)."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, np.ndarray]:
        """Where the stream is, as plain arrays; the same on every rank, and good for another number of ranks."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Goes on from there.

        Raises:
            ValueError: when the state is of other pieces or another seed, or is damaged.
        """
        raise NotImplementedError
