"""How to group texts of different lengths: into bins of one capacity, or into batches of one token budget.

A packed batch has no padding, so it costs its number of tokens. The functions work on lengths alone.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

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
    checked = _check_lengths(lengths)
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
    checked = _check_lengths(lengths)
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


def _check_lengths(lengths: ArrayLike) -> Indices:
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
