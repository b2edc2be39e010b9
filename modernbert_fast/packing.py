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
    """Packs a stream of texts into bins: best fit, with a bounded number of bins open at a time.

    Each text goes to the open bin with the least room that still holds it (the oldest among equals). Where none does, a
    new bin is opened, and if too many are open the fullest is complete. A bin without room is complete at once. The
    same texts give the same bins, however many are added at a time, and from any saved state on.

    Args:
        open_bins: bins that are open at a time, at least 1: more of them waste less room.

    Attributes:
        opened: how many bins were opened so far.
    """

    def __init__(self, open_bins: int = 256) -> None:
        if open_bins < 1:
            raise ValueError(f"open_bins must be at least 1, got {open_bins}")
        self.open_bins = open_bins
        self._bins: Any = _Bins(open_bins) if _host is None else _host.Bins(open_bins)

    @property
    def opened(self) -> int:
        return self._bins.opened

    def add(self, items: ArrayLike, lengths: ArrayLike, capacity: int) -> list[Indices]:
        """Adds texts in their order.

        Args:
            items: (N,) int64, what the caller calls the texts.
            lengths: (N,) integers from 1 to capacity, the tokens of each.
            capacity: tokens that a bin opened now holds.

        Returns:
            The items of each bin that became complete, (n,) int64, in the order in which they were completed.

        Raises:
            ValueError: when a length is not an integer from 1 to capacity, or there are not as many items.
        """
        checked, named = check_lengths(lengths), np.ascontiguousarray(items, np.int64)
        if named.shape != checked.shape:
            raise ValueError(f"{checked.size} lengths need as many items, got shape {named.shape}")
        if checked.size and checked.min() < 1:
            raise ValueError(f"item {named[checked.argmin()]} has no tokens")
        if checked.size and checked.max() > capacity:
            longest = checked.argmax()
            raise ValueError(
                f"item {named[longest]} has {checked[longest]} tokens, more than a bin of {capacity} holds"
            )
        return _split(*self._bins.add(named, checked, capacity))

    def flush(self) -> list[Indices]:
        """The bins still open, the fullest first; none is open afterwards."""
        return _split(*self._bins.flush())

    def state_dict(self) -> dict[str, Indices]:
        """The open bins as int64 arrays: items (K,), bounds (B + 1,), rooms, numbers (B,); opened, open_bins ()."""
        items, bounds, rooms, numbers = self._bins.state()
        counts = {"opened": np.array(self.opened), "open_bins": np.array(self.open_bins)}
        return {"items": items, "bounds": bounds, "rooms": rooms, "numbers": numbers, **counts}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Takes the place of what this packer holds.

        Raises:
            ValueError: when the state is of another number of open bins, or is damaged.
        """
        names = ("items", "bounds", "rooms", "numbers", "opened", "open_bins")
        if missing := [name for name in names if name not in state]:
            raise ValueError(f"not the state of a packer: no {missing[0]!r}")
        arrays = [np.ascontiguousarray(state[name]) for name in names]
        items, bounds, rooms, numbers, opened, open_bins = arrays
        if any(array.dtype != np.int64 for array in arrays) or opened.size != 1 or open_bins.size != 1:
            raise ValueError("not the state of a packer: wrong types")
        if open_bins.item() != self.open_bins:
            raise ValueError(f"the state has {open_bins.item()} open bins, this packer {self.open_bins}")
        keys = list(zip(rooms.tolist(), numbers.tolist(), strict=False))
        valid = (
            items.ndim == bounds.ndim == rooms.ndim == numbers.ndim == 1
            and bounds.size - 1 == rooms.size == numbers.size <= self.open_bins
            and bounds[0] == 0
            and bounds[-1] == items.size
            and (np.diff(bounds) > 0).all()
            and (rooms > 0).all()
            and keys == sorted(keys)
            and len(set(numbers.tolist())) == numbers.size
            and ((numbers >= 0) & (numbers < opened)).all()
        )
        if not valid:
            raise ValueError("not the state of a packer: damaged bins")
        self._bins.load(items, bounds, rooms, numbers, opened.item())


def _split(items: Indices, bounds: Indices) -> list[Indices]:
    return [items[start:stop] for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]


class _Bins:
    """The same as Bins of csrc/host/packing.cpp."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.opened = 0
        self.open: list[tuple[int, int, list[int]]] = []  # (room, number, items), sorted

    def add(self, items: Indices, lengths: Indices, capacity: int) -> tuple[Indices, Indices]:
        complete = []
        for item, length in zip(items.tolist(), lengths.tolist(), strict=True):
            fit = bisect_left(self.open, (length,))
            if fit < len(self.open):
                room, number, held = self.open.pop(fit)
            else:
                if len(self.open) == self.limit:
                    complete.append(self.open.pop(0)[2])
                room, number, held = capacity, self.opened, []
                self.opened += 1
            held.append(item)
            if room == length:
                complete.append(held)
            else:
                insort(self.open, (room - length, number, held))
        return _joined(complete)

    def flush(self) -> tuple[Indices, Indices]:
        bins = _joined([held for _, _, held in self.open])
        self.open = []
        return bins

    def state(self) -> tuple[Indices, Indices, Indices, Indices]:
        rooms, numbers = (np.array([bin[i] for bin in self.open], np.int64) for i in (0, 1))
        return *_joined([held for _, _, held in self.open]), rooms, numbers

    def load(self, items: Indices, bounds: Indices, rooms: Indices, numbers: Indices, opened: int) -> None:
        held = [bin.tolist() for bin in _split(items, bounds)]
        self.open = list(zip(rooms.tolist(), numbers.tolist(), held, strict=True))
        self.opened = opened


def _joined(bins: Sequence[Sequence[int]]) -> tuple[Indices, Indices]:
    bounds = np.cumsum([0, *map(len, bins)], dtype=np.int64)
    return np.array([item for bin in bins for item in bin], np.int64), bounds


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
