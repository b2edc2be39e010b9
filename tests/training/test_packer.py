"""The streaming packer: full bins in a fair order, the same in C++ and Python, however fed and from any state."""

import json
from pathlib import Path

import numpy as np
import pytest

from modernbert_fast import packing
from modernbert_fast.packing import Packer

LOOKAHEAD = 64


def random_lengths(seed: int, count: int, largest: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(np.exp(rng.normal(4.0, 1.0, count)).astype(np.int64), 1, largest)


def drain(packer: Packer, capacity: int, last: bool) -> list[list[int]]:
    bins = []
    while (bin := packer.take(capacity, last)) is not None:
        assert bin.dtype == np.int64
        bins.append(bin.tolist())
    return bins


def pack(lengths: np.ndarray, capacity: int, at_a_time: int, packer: Packer | None = None, first: int = 0) -> list:
    packer = packer or Packer(LOOKAHEAD)
    bins = []
    for start in range(first, len(lengths), at_a_time):
        items = np.arange(start, min(start + at_a_time, len(lengths)))
        packer.add(items, lengths[items])
        bins += drain(packer, capacity, last=False)
    return bins + drain(packer, capacity, last=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("capacity", [128, 512, 8192])
def test_every_item_once_and_no_bin_over_its_capacity(seed, capacity):
    lengths = random_lengths(seed, 2000, 128)
    bins = pack(lengths, capacity, 100)
    assert sorted(item for bin in bins for item in bin) == list(range(2000))
    assert max(lengths[bin].sum() for bin in bins) <= capacity


@pytest.mark.parametrize("capacity", [512, 1024, 8192])
def test_bins_are_at_least_99_percent_full(capacity):
    lengths = random_lengths(0, 20_000, 512)
    packer, full, taken = Packer(), 0, 0
    packer.add(np.arange(20_000), lengths)
    while (bin := packer.take(capacity)) is not None:
        full, taken = full + lengths[bin].sum(), taken + 1
    assert taken and full / (taken * capacity) >= 0.99


def test_the_oldest_first_then_the_longest_that_fits():
    packer = Packer(1)
    packer.add([10, 11, 12, 13, 14, 15], [4, 3, 6, 2, 3, 3])
    assert packer.take(10).tolist() == [10, 11, 14]  # 6 does not fit into 3; of the threes the oldest that is left
    assert packer.take(10) is None  # eleven tokens wait, of two bins' twenty
    assert packer.take(10, last=True).tolist() == [12, 13]  # 2 is next and fits
    assert packer.take(10, last=True).tolist() == [15]
    assert packer.take(10, last=True) is None


def test_nothing_waits_much_longer_than_the_lookahead():
    """A bin that is a fair sample: an item leaves at most two lookaheads after it came."""
    lengths = random_lengths(1, 5000, 500)
    came = 0
    packer = Packer(LOOKAHEAD)
    for item, length in enumerate(lengths):
        packer.add([item], [length])
        came += 1
        while (bin := packer.take(512)) is not None:
            assert came - min(bin) <= 2 * LOOKAHEAD


def test_waits_for_two_bins_of_tokens():
    packer = Packer(2)
    packer.add([0, 1, 2], [5, 5, 5])
    assert packer.take(8) is None
    packer.add([3], [1])
    assert packer.take(8).tolist() == [0, 3]


@pytest.mark.parametrize("at_a_time", [1, 7, 256])
def test_the_texts_that_wait_decide_not_how_they_came(at_a_time):
    lengths = random_lengths(2, 1000, 256)
    at_once, fed = Packer(1), Packer(1)
    at_once.add(np.arange(1000), lengths)
    for start in range(0, 1000, at_a_time):
        fed.add(np.arange(start, min(start + at_a_time, 1000)), lengths[start : start + at_a_time])
    assert drain(fed, 300, last=True) == drain(at_once, 300, last=True)


@pytest.mark.skipif(packing._host is None, reason="built without a compiler")
@pytest.mark.parametrize("seed", range(10))
def test_compiled_and_python_agree(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, rng.integers(2, 90), 1500)
    capacity = int(lengths.max()) + int(rng.integers(0, 200))
    compiled = pack(lengths, capacity, 50)
    monkeypatch.setattr(packing, "_host", None)
    assert pack(lengths, capacity, 50) == compiled


def test_the_benchmark_runs(tmp_path, monkeypatch, keep_threads):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    from data import packer

    packer.main(["--pieces", "4000", "--capacities", "1024", "--output", str(tmp_path)])  # it raises below its limits
    records = json.loads((tmp_path / "packer.json").read_text())["records"]
    assert [record["mix"] for record in records] == ["web", "passages", "sentences", "uniform", "hard"]
    assert all(record["efficiency"] <= 1 and record["tokens_s"] > 0 for record in records)


@pytest.mark.parametrize("compiled", [True, False])
def test_goes_on_from_any_state(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(packing, "_host", None)
    elif packing._host is None:
        pytest.skip("built without a compiler")
    lengths = random_lengths(3, 1000, 256)
    whole = pack(lengths, 512, 50)
    packer, bins = Packer(LOOKAHEAD), []
    for start in range(0, 1000, 50):
        packer.add(np.arange(start, start + 50), lengths[start : start + 50])
        while (bin := packer.take(512)) is not None:
            bins.append(bin.tolist())
            resumed = Packer(LOOKAHEAD)
            resumed.load_state_dict({name: array.copy() for name, array in packer.state_dict().items()})
            rest = drain(resumed, 512, last=False)
            assert bins + rest + pack(lengths, 512, 50, resumed, start + 50) == whole
    assert len(bins) > 20


@pytest.mark.parametrize("compiled", [True, False])
def test_bad_input_and_the_next_call_works(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(packing, "_host", None)
    packer = Packer(1)
    for items, lengths, text in [
        ([0], [0], "item 0 has no tokens"),
        ([0], [-1], "text 0 has -1"),
        ([0], [1.5], "integers, got float64"),
        ([0], [[1]], "one-dimensional"),
        ([0, 1], [1], "need as many integers"),
        ([0.5], [1], "need as many integers, got float64"),
    ]:
        with pytest.raises(ValueError, match=text):
            packer.add(items, lengths)
    packer.add([7, 8], [9, 3])
    with pytest.raises(ValueError, match="item 7 has 9 tokens, more than a bin of 8 holds"):
        packer.take(8, last=True)
    assert packer.take(9, last=True).tolist() == [7]
    assert packer.take(9, last=True).tolist() == [8]
    with pytest.raises(ValueError, match="lookahead must be at least 1, got 0"):
        Packer(0)


@pytest.mark.parametrize(
    "state, text",
    [
        ({"items": [1]}, "no 'lengths'"),
        ({"items": [1], "lengths": [0]}, "item 1 has no tokens"),
        ({"items": [1, 2], "lengths": [3]}, "as many integers"),
    ],
)
def test_damaged_states_are_refused_and_change_nothing(state, text):
    packer = Packer(1)
    packer.add([5], [5])
    with pytest.raises(ValueError, match=text):
        packer.load_state_dict(state)
    assert packer.take(5, last=True).tolist() == [5]
