"""Pairs of segments for sentence order: [CLS] A [SEP] B [SEP], cut where sentences begin, and how they follow."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modernbert_fast.training.sampler import Item
from modernbert_fast.training.token_store import TokenStore

SPECIAL_TOKENS = 3  # [CLS] and two [SEP]
NEXT, PREVIOUS, RANDOM = range(3)
TRIES = 64  # of random segments, for one that has a length which is wanted

Span = tuple[int, int, int]  # document, start, stop

logger = logging.getLogger("modernbert_fast")


def pair_pieces(store: TokenStore, max_length: int) -> NDArray[np.int64]:
    """Runs of whole sentences that fit max_length tokens as a pair, each of at least two: as many as fit, in order.

    Sentences that make no pair are left out, and a warning counts their tokens: those of documents of one sentence,
    the last of a document where it stands alone, and those too long to share a pair with their neighbour.

    Args:
        max_length: tokens of a pair, its three special tokens included; at least 5.

    Returns:
        (M, 3) int64: document, start, stop.

    Raises:
        ValueError: when max_length is below 5, no document gives a pair, or the store has no sentences.
    """
    if max_length < SPECIAL_TOKENS + 2:
        raise ValueError(f"max_length must be at least {SPECIAL_TOKENS + 2}, got {max_length}")
    found: list[Span] = []
    for document in range(len(store)):
        bounds = _bounds(store, document)
        ends = np.searchsorted(bounds, bounds + max_length - SPECIAL_TOKENS, "right") - 1
        first = 0
        while first + 1 < len(bounds):
            last = int(ends[first])
            if last - first >= 2:
                found.append((document, int(bounds[first]), int(bounds[last])))
                first = last
            else:
                first += 1
    if not found:
        raise ValueError(f"no document of {store.folder} has two sentences that fit {max_length} tokens")
    pieces = np.array(found, np.int64)
    total, kept = int(store.lengths.sum()), int((pieces[:, 2] - pieces[:, 1]).sum())
    if kept < total:
        logger.warning(
            "modernbert_fast: sentence pairs leave out %d of %d tokens (%.2f %%), sentences without a neighbour that "
            "fits %d tokens with them",
            *(total - kept, total, 100 * (total - kept) / total, max_length),
        )
    return pieces


class PairDataset:
    """One feature a piece: `input_ids` (n,) int64 of a pair, `sentence_order_label`, `key` of the piece and epoch.

    The place where a piece is cut and the order of its halves are drawn from (seed, key), anew every epoch, while its
    length stays. Labels of two ways are ALBERT's: 0 for the order of the document, 1 for the halves swapped. Of three
    ways: 0, B comes next after A; 1, B comes before A; 2, B is a segment of whole sentences of another document, as
    long to the token as the rest of the piece that it replaces. Where TRIES draws find no such segment, which happens
    to pieces of few sentences, the pair becomes one of the other two. Short segments are found more easily, so the
    length of B alone says something of label 2: A has 0.58 of such a pair on average, else 0.50 (synthetic documents).

    Args:
        store: the tokens, with sentences.
        pieces: from pair_pieces.
        ways: 2 or 3; `sentence_order_labels` of the model's config.
        seed: of all draws.

    Raises:
        ValueError: on other ways, or three of a store with a single document.
    """

    def __init__(self, store: TokenStore, pieces: NDArray[np.int64], *, ways: int = 2, seed: int = 0) -> None:
        if ways not in (2, 3):
            raise ValueError(f"sentence order has 2 or 3 ways, got {ways}")
        if ways == 3 and len(store) < 2:
            raise ValueError(f"{store.folder} has one document: a random segment needs another")
        self.store = store
        self.pieces = pieces
        self.ways = ways
        self.seed = seed
        self.lengths = pieces[:, 2] - pieces[:, 1] + SPECIAL_TOKENS

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, item: Item) -> dict[str, Any]:
        piece, epoch = item
        key = epoch * len(self) + piece
        draw = np.random.Generator(np.random.PCG64DXSM([self.seed, key % 2**64]))
        first, second, label = self._pair(self.pieces[piece].tolist(), draw)
        cls, sep = [self.store.cls_id], [self.store.sep_id]
        ids = np.concatenate([cls, self.store.tokens(*first), sep, self.store.tokens(*second), sep])
        return {"input_ids": ids.astype(np.int64, copy=False), "sentence_order_label": label, "key": key}

    def _pair(self, piece: Span, draw: np.random.Generator) -> tuple[Span, Span, int]:
        """Both segments of a pair, and its label."""
        document, start, stop = piece
        bounds = self.store.sentences(document)
        cuts = bounds[(bounds > start) & (bounds < stop)]
        if not len(cuts):
            raise ValueError(f"tokens {start} to {stop} of document {document} are not a piece of pair_pieces")
        label = int(draw.integers(self.ways))
        if label == RANDOM:
            if (other := self._elsewhere(document, stop - cuts, draw)) is not None:
                return (document, start, stop - (other[2] - other[1])), other, RANDOM
            label = int(draw.integers(RANDOM))
        cut = int(draw.choice(cuts))
        halves = (document, start, cut), (document, cut, stop)
        return (*halves, NEXT) if label == NEXT else (*halves[::-1], PREVIOUS)

    def _elsewhere(self, document: int, wanted: NDArray[np.int64], draw: np.random.Generator) -> Span | None:
        """Whole sentences of another document whose tokens number one of `wanted`; None where none was found."""
        for _ in range(TRIES):
            other = int(draw.integers(len(self.store) - 1))
            other += other >= document
            bounds = _bounds(self.store, other)
            start = int(draw.choice(bounds[:-1]))
            fitting = np.intersect1d(bounds - start, wanted)
            if len(fitting):
                return other, start, start + int(draw.choice(fitting))
        return None


def _bounds(store: TokenStore, document: int) -> NDArray[np.int64]:
    """Where sentences begin, and the end of the document."""
    return np.append(store.sentences(document), store.lengths[document])
