"""Packed sampling: every piece once an epoch, one stream for all ranks, exact from any state."""

import itertools
from collections import Counter

import numpy as np
import pytest

from modernbert_fast.training.sampler import FILLER_EPOCH, PackedSampler, pieces

COUNT = 700
LENGTHS = np.clip(np.exp(np.random.default_rng(0).normal(3.5, 1.0, COUNT)).astype(np.int64), 3, 200)


def sampler(**options) -> PackedSampler:
    return PackedSampler(LENGTHS, **{"tokens_per_batch": 256, "epochs": 2, "seed": 5, "lookahead": 64, **options})


def test_pieces_cut_documents_without_a_gap():
    cut = pieces([0, 1, 8, 9, 0, 20], 10)
    assert cut.tolist() == [[1, 0, 1], [2, 0, 8], [3, 0, 8], [3, 8, 9], [5, 0, 8], [5, 8, 16], [5, 16, 20]]
    assert cut.dtype == np.int64
    assert pieces([], 10).shape == (0, 3) and pieces([3], 3).tolist() == [[0, 0, 1], [0, 1, 2], [0, 2, 3]]


@pytest.mark.parametrize("lengths, limit, text", [([4, -1], 8, "text 1 has -1"), ([4], 2, "at least 3, got 2")])
def test_bad_pieces(lengths, limit, text):
    with pytest.raises(ValueError, match=text):
        pieces(lengths, limit)


def test_every_piece_once_an_epoch_in_full_batches():
    batches = list(sampler())
    seen = Counter(itertools.chain.from_iterable(batches))
    assert seen == Counter({(piece, epoch): 1 for piece in range(COUNT) for epoch in range(2)})
    tokens = [LENGTHS[[piece for piece, _ in batch]].sum() for batch in batches]
    assert max(tokens) <= 256 and np.mean(tokens) >= 0.98 * 256
    assert all(isinstance(number, int) for number in batches[0][0])


def test_orders_differ_by_epoch_and_seed_and_repeat():
    alone = PackedSampler(np.full(50, 3), 3, epochs=2, lookahead=1)  # a piece a batch: the order itself
    (first, second) = np.array([piece for batch in alone for piece, _ in batch]).reshape(2, 50).tolist()
    assert sorted(first) == sorted(second) == list(range(50)) and first != second and first != sorted(first)
    assert list(sampler()) == list(sampler()) != list(sampler(seed=6))
    # The raw draws of a bit generator never change between NumPy's versions; so neither do these.
    order = PackedSampler(np.full(8, 3), 24, seed=1, epochs=1, lookahead=8)
    assert [piece for piece, _ in next(iter(order))] == [6, 0, 1, 5, 7, 4, 2, 3]


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_together_see_the_batches_of_one_and_as_many_each(world):
    alone = list(sampler())
    ranks = [list(sampler(rank=rank, world=world)) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {-(-len(alone) // world)}
    together = [batch for step in zip(*ranks, strict=True) for batch in step]
    assert together[: len(alone)] == alone
    fillers = together[len(alone) :]
    assert len(fillers) < world
    assert all(filler == [(int(LENGTHS.argmin()), FILLER_EPOCH)] for filler in fillers)


def test_some_world_needs_fillers():
    assert any(len(list(sampler())) % world for world in (2, 3, 8))


def test_endless():
    stream = iter(sampler(epochs=None))
    seen: Counter = Counter()
    while len([1 for _, epoch in seen if epoch == 3]) < COUNT:
        seen.update(next(stream))
    assert max(seen.values()) == 1 and all(seen[piece, epoch] for piece in range(COUNT) for epoch in range(4))


@pytest.mark.parametrize("world", [1, 2])
def test_goes_on_from_any_state_also_with_other_ranks(world):
    alone = list(sampler())
    ranks = [sampler(rank=rank, world=world) for rank in range(world)]
    streams = [iter(rank) for rank in ranks]
    for step in range(0, len(alone) + 2, world):
        states = [rank.state_dict() for rank in ranks]
        for state in states[1:]:
            assert all(np.array_equal(state[name], states[0][name]) for name in state)
        resumed = sampler()
        resumed.load_state_dict(states[-1])
        assert list(resumed) == alone[step:]
        for stream in streams:
            next(stream, None)


def test_states_are_plain_arrays(tmp_path):
    first = sampler()
    stream = iter(first)
    taken = list(itertools.islice(stream, 9))
    np.savez(tmp_path / "state.npz", **first.state_dict())
    resumed = sampler()
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        resumed.load_state_dict(dict(state))
    assert taken + list(resumed) == list(sampler())


def test_batches_grow_with_their_number():
    def capacity(number: int) -> int:
        return min(1024, 256 + 16 * number)

    batches = list(sampler(tokens_per_batch=capacity))
    tokens = np.array([LENGTHS[[piece for piece, _ in batch]].sum() for batch in batches])
    limits = np.array([capacity(number) for number in range(len(batches))])
    assert (tokens <= limits).all() and (tokens[:-4] >= 0.95 * limits[:-4]).all()
    assert limits[-1] > 2 * limits[0]
    first = sampler(tokens_per_batch=capacity)
    taken = list(itertools.islice(iter(first), 20))
    resumed = sampler(tokens_per_batch=capacity)
    resumed.load_state_dict(first.state_dict())
    assert taken + list(resumed) == batches


@pytest.mark.parametrize(
    "options, text",
    [
        ({"tokens_per_batch": 100}, f"piece {LENGTHS.argmax()} has {LENGTHS.max()} tokens, a batch has room for 100"),
        ({"tokens_per_batch": lambda number: 100 + number}, "a batch has room for 100"),
        ({"rank": 2, "world": 2}, "rank must be from 0 to world - 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"epochs": 0}, "epochs at least 1"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        sampler(**options)


def test_bad_lengths():
    for lengths, text in [([], "no pieces"), ([3, 0], "piece 1 has no tokens"), ([2.5], "integers, got float64")]:
        with pytest.raises(ValueError, match=text):
            PackedSampler(lengths, 8)


def test_foreign_and_damaged_states_are_refused_and_change_nothing():
    good = sampler()
    next(iter(good))
    state = good.state_dict()
    others = LENGTHS.copy()
    others[3] += 1
    for other in (sampler(seed=6), PackedSampler(others, 256, seed=5), PackedSampler(LENGTHS[:-1], 256, seed=5)):
        with pytest.raises(ValueError, match="other pieces or of another seed"):
            other.load_state_dict(state)
    beyond = {"place": state["place"] + [0, 5, 0]}
    lengths = state["lengths"].copy()
    lengths[0] += 1
    for change, text in [
        (beyond, "beyond the 2"),
        ({"place": np.array([0, 0, COUNT])}, "it stands at"),
        ({"place": np.array([0, -1, 0])}, "it stands at"),
        ({"place": np.array([0.0, 0, 0])}, "it stands at"),
        ({"lengths": lengths}, "pieces that wait have other lengths"),
        ({"items": state["items"][:-1]}, "as many integers"),
    ]:
        with pytest.raises(ValueError, match=text):
            good.load_state_dict({**state, **change})
    with pytest.raises(ValueError, match="no 'place'"):
        good.load_state_dict({"fingerprint": state["fingerprint"]})
    assert list(good) == list(sampler())[1:]
