"""Packed loading by workers: the same batches as without, resumable after any batch, nothing lost, flat memory."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from modernbert_fast.training.loader import PackedLoader
from modernbert_fast.training.masking import MaskedLMCollator
from modernbert_fast.training.sampler import PackedSampler

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LENGTHS = np.clip(np.exp(np.random.default_rng(0).normal(3.0, 0.8, 400)).astype(np.int64), 3, 120)
COLLATE = MaskedLMCollator(mask_id=4, vocab_size=100, special_ids=(1, 2), seed=3)


class Numbered:
    """Pieces whose ids tell which they are."""

    lengths = LENGTHS

    def __getitem__(self, item):
        piece, epoch = item
        ids = 5 + (piece + np.arange(LENGTHS[piece])) % 95
        return {"input_ids": ids, "key": epoch * len(LENGTHS) + piece}


class Broken(Numbered):
    def __getitem__(self, item):
        if item[0] == 7:
            raise ValueError("piece 7 is damaged")
        return super().__getitem__(item)


def loader(workers: int = 0, dataset: Numbered | None = None, **options) -> PackedLoader:
    sampler = PackedSampler(LENGTHS, **{"tokens_per_batch": 256, "epochs": 2, "seed": 1, "lookahead": 32, **options})
    return PackedLoader(dataset or Numbered(), sampler, COLLATE, workers)


def same(a: list[dict], b: list[dict]) -> bool:
    def equal(x, y):
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y

    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(equal(x[name], y[name]) for name in x) for x, y in zip(a, b, strict=True)
    )


@pytest.fixture(scope="module")
def undisturbed() -> list[dict]:
    return list(loader())


def test_batches_are_the_samplers(undisturbed):
    assert len(undisturbed) > 40
    assert all(batch["input_ids"].shape == batch["labels"].shape for batch in undisturbed)
    tokens = sum(batch["input_ids"].numel() for batch in undisturbed)
    assert tokens == 2 * LENGTHS.sum()


def test_workers_change_nothing_and_torchs_own_draws_neither(undisturbed):
    state = torch.get_rng_state()
    assert same(list(loader(3)), undisturbed)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_state_is_of_the_batch_that_was_handed_out(workers, undisturbed, tmp_path):
    """Whatever the workers have prefetched; an iteration that is left goes on in the next."""
    first = loader(workers)
    taken = list(itertools.islice(first, 5))
    np.savez(tmp_path / "state.npz", **first.state_dict())
    taken += itertools.islice(first, 6)
    assert same(taken, undisturbed[:11])
    resumed = loader(workers)
    with np.load(tmp_path / "state.npz") as state:
        resumed.load_state_dict(dict(state))
    rest = list(itertools.islice(resumed, 20))
    resumed.load_state_dict(first.state_dict())
    assert same(rest, undisturbed[5:25]) and same(list(resumed), undisturbed[11:])
    assert not list(resumed)


def test_any_state_in_two_ranks(undisturbed):
    ranks = [loader(rank=rank, world=2) for rank in range(2)]
    for step, batches in enumerate(zip(*ranks, strict=True)):
        real = undisturbed[2 * step : 2 * step + 2]
        assert same(list(batches)[: len(real)], real)
        for filler in batches[len(real) :]:
            assert (filler["labels"] == -100).all()
        if step % 9 == 0:
            resumed = loader()
            resumed.load_state_dict(ranks[1].state_dict())
            assert same(list(resumed), undisturbed[2 * step + 2 :])
    assert 2 * step + 2 - len(undisturbed) in (0, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_dataset_arrives_and_the_next_loader_works(workers, undisturbed):
    with pytest.raises(ValueError, match="piece 7 is damaged"):
        list(loader(workers, Broken()))
    assert same(list(itertools.islice(loader(workers), 3)), undisturbed[:3])


def test_a_foreign_state_is_refused():
    with pytest.raises(ValueError, match="other pieces or of another seed"):
        loader(seed=2).load_state_dict(loader().state_dict())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's /proc")
def test_no_text_is_lost_or_doubled_and_memory_stays_flat(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(BENCHMARKS)
    from data import workers

    record = workers.run(50_000, 4, tmp_path, 8192)  # raises when a text is lost, doubled or altered
    assert record["masked"] == pytest.approx(0.3, abs=0.003)
    assert max(record["growth"].values()) < workers.GROWTH
