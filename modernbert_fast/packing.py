"""How to group texts of different lengths: into bins of one capacity, at once or as they come, or into batches.

A packed batch has no padding, so it costs its number of tokens. The functions work on lengths alone.
"""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    import modernbert_fast._host as _host
except ImportError:  # built without a compiler: the same results, more slowly
    _host = None

Indices = NDArray[np.int64]


def best_fit(lengths: ArrayLike, capacity: int) -> Indices:
    """Packs texts into few bins: best fit decreasing.

    The longest text goes first, ties in order. Each goes to the bin with the least room that still holds it
    (the lowest bin among equals), or to a new bin.

    Args:
        lengths: (N,) integers, the tokens of each text.
        capacity: tokens that a bin holds.

    Returns:
        (N,) int64, the bin of each text; bins are numbered from 0 in the order they were opened.

    Raises:
        ValueError: if a length is negative, not an integer or larger than capacity, or capacity is below 1.
    """
    checked = check_lengths(lengths)
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1, got {capacity}")
    if checked.size and checked.max() > capacity:
        text = int(checked.argmax())
        raise ValueError(f"text {text} has {checked[text]} tokens, more than a bin of {capacity} holds")
    if _host is not None:
        return _host.best_fit(checked, capacity)
    return _best_fit(checked.tolist(), capacity)


def token_budget_batches(lengths: ArrayLike, max_tokens: int) -> list[Indices]:
    """Groups texts of similar length into batches of at most max_tokens tokens, longest texts first.

    Args:
        lengths: (N,) integers, the tokens of each text.
        max_tokens: the budget of a batch. A single text that exceeds it is a batch of its own.

    Returns:
        Index arrays (n,) int64 that together hold 0..N-1 once; lengths never increase from first to last.

    Raises:
        ValueError: if a length is negative or not an integer, or if max_tokens is below 1.
    """
    checked = check_lengths(lengths)
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    order = _longest_first(checked)
    ends = np.cumsum(checked[order])
    batches = []
    first = used = 0
    while first < order.size:
        stop = max(first + 1, int(np.searchsorted(ends, used + max_tokens, side="right")))
        batches.append(order[first:stop])
        first, used = stop, int(ends[stop - 1])
    return batches


class Packer:
    """Packs a stream of texts into bins that leave one by one: in the order they came, and the best fit at the end.

    A bin takes the texts that have waited longest, as long as the next one fits. Then it takes the longest that fits
    of all that wait (the oldest among equals), until none does. So a bin is filled nearly whole, is a fair sample of
    the stream, and no text waits long. The texts that wait decide alone, so a saved state goes on with the same bins.

    Args:
        lookahead: texts that wait before a bin is taken, at least 1: more of them waste less room.
    """

    def __init__(self, lookahead: int = 2048) -> None:
        if lookahead < 1:
            raise ValueError(f"lookahead must be at least 1, got {lookahead}")
        self.lookahead = lookahead
        self._waiting = self._empty()

    def add(self, items: ArrayLike, lengths: ArrayLike) -> None:
        """Lets texts wait.

        Args:
            items: (N,) integers, what the caller calls the texts.
            lengths: (N,) integers of at least 1, the tokens of each.

        Raises:
            ValueError: when a length is not an integer of at least 1, or there are not as many items.
        """
        self._waiting.add(*_check_texts(items, lengths))

    def take(self, capacity: int, last: bool = False) -> Indices | None:
        """The next bin, or None when it should have more texts to choose from: lookahead, and two bins' tokens.

        Args:
            capacity: tokens that it holds.
            last: no more texts will come: None means that none is left.

        Returns:
            (n,) int64 items.

        Raises:
            ValueError: when the text that has waited longest has more tokens than capacity.
        """
        bin = self._waiting.take(capacity, 1 if last else self.lookahead, 0 if last else 2 * capacity)
        return bin if bin.size else None

    def state_dict(self) -> dict[str, Indices]:
        """The texts that wait, oldest first: items and lengths (N,) int64."""
        items, lengths = self._waiting.texts()
        return {"items": items, "lengths": lengths}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Takes the place of the texts that wait.

        Raises:
            ValueError: when the state is damaged.
        """
        if missing := [name for name in ("items", "lengths") if name not in state]:
            raise ValueError(f"not the state of a packer: no {missing[0]!r}")
        texts = _check_texts(state["items"], state["lengths"])
        self._waiting = self._empty()
        self._waiting.add(*texts)

    @staticmethod
    def _empty() -> Any:
        return _Waiting() if _host is None else _host.Waiting()


def _check_texts(items: ArrayLike, lengths: ArrayLike) -> tuple[Indices, Indices]:
    checked, named = check_lengths(lengths), np.asarray(items)
    if named.shape != checked.shape or (named.size and named.dtype.kind not in "iu"):
        raise ValueError(f"{checked.size} lengths need as many integers, got {named.dtype} {named.shape}")
    if checked.size and checked.min() < 1:
        raise ValueError(f"item {named[checked.argmin()]} has no tokens")
    return np.ascontiguousarray(named, np.int64), checked


class _Waiting:
    """The same as Waiting of csrc/host/packing.cpp."""

    def __init__(self) -> None:
        self.by_age: dict[int, tuple[int, int]] = {}  # number -> (item, length), oldest first
        self.by_length: list[tuple[int, int]] = []  # (length, number), sorted
        self.tokens = self.added = 0

    def add(self, items: Indices, lengths: Indices) -> None:
        for item, length in zip(items.tolist(), lengths.tolist(), strict=True):
            self.by_age[self.added] = item, length
            insort(self.by_length, (length, self.added))
            self.tokens += length
            self.added += 1

    def take(self, capacity: int, texts: int, tokens: int) -> Indices:
        bin: list[int] = []
        if len(self.by_age) < texts or self.tokens < tokens:
            return np.array(bin, np.int64)
        room = capacity
        while self.by_age:
            number = next(iter(self.by_age))
            item, length = self.by_age[number]
            if length > room:
                break
            room -= self._move(number, bin)
        if not bin and self.by_age:
            raise ValueError(f"item {item} has {length} tokens, more than a bin of {capacity} holds")
        while fits := bisect_left(self.by_length, (room + 1,)):
            longest = self.by_length[fits - 1][0]
            room -= self._move(self.by_length[bisect_left(self.by_length, (longest,))][1], bin)
        return np.array(bin, np.int64)

    def _move(self, number: int, bin: list[int]) -> int:
        """From those that wait to a bin; returns the length."""
        item, length = self.by_age.pop(number)
        self.by_length.pop(bisect_left(self.by_length, (length, number)))
        self.tokens -= length
        bin.append(item)
        return length

    def texts(self) -> tuple[Indices, Indices]:
        texts = np.array(list(self.by_age.values()), np.int64).reshape(-1, 2)
        return np.ascontiguousarray(texts[:, 0]), np.ascontiguousarray(texts[:, 1])


def check_lengths(lengths: ArrayLike) -> Indices:
    """(N,) int64, or a ValueError: lengths are one-dimensional, integers, and not negative."""
    array = np.asarray(lengths)
    if array.ndim != 1:
        raise ValueError(f"lengths must be one-dimensional, got shape {array.shape}")
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu":
        raise ValueError(f"lengths must be integers, got {array.dtype}")
    if array.min() < 0:
        raise ValueError(f"lengths must not be negative: text {int(array.argmin())} has {array.min()}")
    return np.ascontiguousarray(array, np.int64)


def _longest_first(lengths: Indices) -> Indices:
    """Indices by falling length; equal lengths keep their order."""
    return np.argsort(-lengths, kind="stable").astype(np.int64, copy=False)


def _best_fit(lengths: Sequence[int], capacity: int) -> Indices:
    """The same as csrc/host/packing.cpp."""
    bins = np.empty(len(lengths), np.int64)
    open_bins: list[tuple[int, int]] = []  # (room, bin), sorted
    opened = 0
    for text in _longest_first(np.asarray(lengths, np.int64)).tolist():
        fit = bisect_left(open_bins, (lengths[text], 0))
        if fit < len(open_bins):
            room, chosen = open_bins.pop(fit)
        else:
            room, chosen = capacity, opened
            opened += 1
        insort(open_bins, (room - lengths[text], chosen))
        bins[text] = chosen
    return bins
