"""Grouping of texts by length: valid, deterministic, and the same with and without the compiled part."""

import time

import numpy as np
import pytest

from modernbert_fast import packing
from modernbert_fast.packing import best_fit, token_budget_batches


def random_lengths(seed: int, count: int, largest: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.minimum(np.exp(rng.normal(4.5, 1.0, count)).astype(np.int64), largest)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("capacity", [1, 64, 1024])
def test_best_fit_fills_bins_and_never_overfills(seed, capacity):
    lengths = random_lengths(seed, 500, capacity)
    bins = best_fit(lengths, capacity)
    loads = np.bincount(bins, weights=lengths)
    assert bins.dtype == np.int64 and bins.shape == lengths.shape
    assert loads.max() <= capacity
    assert set(bins) == set(range(len(loads)))
    # Two bins that would fit into one cannot both be left: the later one was opened for lack of room.
    assert np.sort(loads)[:2].sum() > capacity or len(loads) < 2


def test_best_fit_takes_the_tightest_bin():
    #                      bin 0: 6, bin 1: 5, then 4 fits bin 0 exactly, 3 bin 1, 2 bin 1
    assert best_fit([3, 6, 2, 5, 4], 10).tolist() == [1, 0, 1, 1, 0]


@pytest.mark.skipif(packing._host is None, reason="built without a compiler")
@pytest.mark.parametrize("seed", range(20))
def test_compiled_and_python_agree(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, rng.integers(1, 80), 300)
    capacity = int(lengths.max()) + int(rng.integers(1, 60))
    assert np.array_equal(packing._host.best_fit(lengths, capacity), packing._best_fit(lengths.tolist(), capacity))


def test_python_alone(monkeypatch):
    monkeypatch.setattr(packing, "_host", None)
    test_best_fit_takes_the_tightest_bin()
    assert best_fit([], 10).shape == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_batches_hold_every_text_once_within_the_budget(seed):
    lengths = random_lengths(seed, 400, 900)
    batches = token_budget_batches(lengths, 700)
    order = np.concatenate(batches)
    assert np.array_equal(np.sort(order), np.arange(400))
    assert (np.diff(lengths[order]) <= 0).all()
    for batch in batches:
        assert batch.dtype == np.int64
        assert lengths[batch].sum() <= 700 or len(batch) == 1
    for batch, after in zip(batches, batches[1:], strict=False):
        assert lengths[batch].sum() + lengths[after[0]] > 700


def test_equal_lengths_keep_their_order():
    assert [batch.tolist() for batch in token_budget_batches([2, 2, 2, 2, 2], 4)] == [[0, 1], [2, 3], [4]]


def test_edges():
    assert token_budget_batches([], 10) == []
    assert [batch.tolist() for batch in token_budget_batches([0, 0], 1)] == [[0, 1]]
    assert [batch.tolist() for batch in token_budget_batches([3, 50], 10)] == [[1], [0]]
    assert best_fit([0, 0, 0], 1).tolist() == [0, 0, 0]
    assert best_fit(np.array([2, 1], np.uint8), 3).tolist() == [0, 0]


@pytest.mark.parametrize("function", [best_fit, token_budget_batches])
@pytest.mark.parametrize(
    "lengths, limit, text",
    [
        ([[1, 2]], 4, r"one-dimensional, got shape \(1, 2\)"),
        ([1.5], 4, "integers, got float64"),
        ([3, -1], 4, "text 1 has -1"),
        ([1], 0, "at least 1, got 0"),
    ],
)
def test_bad_input(function, lengths, limit, text):
    with pytest.raises(ValueError, match=text):
        function(lengths, limit)


def test_text_longer_than_a_bin():
    with pytest.raises(ValueError, match="text 1 has 9 tokens, more than a bin of 8 holds"):
        best_fit([3, 9], 8)


@pytest.mark.skipif(packing._host is None, reason="built without a compiler")
def test_packs_millions_of_tokens_in_a_second():
    lengths = random_lengths(0, 50_000, 8192)
    start = time.perf_counter()
    best_fit(lengths, 8192)
    assert lengths.sum() / (time.perf_counter() - start) > 5e6
