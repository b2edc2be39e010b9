"""Dynamic masking: rates, reproducible draws that depend on nothing but seed, piece, epoch and position."""

import numpy as np
import pytest
import torch

from modernbert_fast.training.masking import MaskedLMCollator, mask_tokens

CLS, SEP, MASK, VOCAB = 1, 2, 4, 100
SPECIAL = (0, CLS, SEP, 3, MASK)
OPTIONS = {"mask_id": MASK, "vocab_size": VOCAB, "special_ids": SPECIAL}


def collator(**changes) -> MaskedLMCollator:
    return MaskedLMCollator(**{**OPTIONS, "seed": 7, **changes})


def feature(key: int | None = None, length: int = 60, **more) -> dict:
    ids = np.r_[CLS, 5 + np.arange(length) % (VOCAB - 5), SEP]
    return {"input_ids": ids, **({} if key is None else {"key": key}), **more}


def texts_of(batch: dict) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each text."""
    lengths = batch["cu_seq_lens_q"].diff().tolist()
    ids, labels = (batch[name][0].split(lengths) for name in ("input_ids", "labels"))
    return [(i.tolist(), l.tolist()) for i, l in zip(ids, labels, strict=True)]


def test_rates():
    count = 400_000
    ids = torch.full((count,), 50)
    masked, labels = mask_tokens(ids, torch.arange(count) // 128, torch.arange(count) % 128, **OPTIONS)
    chosen = labels != -100
    assert (labels[chosen] == 50).all() and (masked[~chosen] == 50).all()
    assert chosen.float().mean() == pytest.approx(0.3, abs=0.004)  # more than five standard deviations
    assert (masked[chosen] == MASK).float().mean() == pytest.approx(0.8 + 0.1 / VOCAB, abs=0.006)
    others = masked[chosen & (masked != MASK)]
    assert (others == 50).sum() / chosen.sum() == pytest.approx(0.1 + 0.1 / VOCAB, abs=0.006)
    drawn = torch.bincount(others[others != 50], minlength=VOCAB)[[i for i in range(VOCAB) if i not in (MASK, 50)]]
    assert drawn.min() > 0 and drawn.max() < 2 * drawn.float().mean()  # the whole vocabulary
    positions = chosen.view(-1, 128)[: count // 128].float().mean(0)  # and neighbours have nothing to do with it
    assert (positions - 0.3).abs().max() < 0.05
    assert (chosen[1:] & chosen[:-1]).float().mean() == pytest.approx(0.09, abs=0.004)


def test_draws_depend_on_seed_key_and_position_alone():
    features = [feature(key, 20 + key) for key in range(8)]
    alone = [texts_of(collator()([one]))[0] for one in features]
    assert texts_of(collator()(features)) == alone
    assert texts_of(collator()(features[::-1])) == alone[::-1]
    assert len({str(labels[:21]) for _, labels in alone}) == 8
    assert texts_of(collator(seed=8)(features)) != alone
    ids, keys, positions = torch.full((50,), 9), torch.full((50,), 3), torch.arange(50)
    forwards = mask_tokens(ids, keys, positions, **OPTIONS)
    backwards = mask_tokens(ids, keys, positions.flip(0), **OPTIONS)
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(forwards, backwards, strict=True))


def test_known_draws():
    """What every device and release must draw: the hash is written out once more, in Python's integers."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    golden, keys = 0x9E3779B97F4A7C15, [0, 1, 2**40 + 7, 2**62]
    for key in keys:
        positions = torch.arange(200)
        masked, labels = mask_tokens(
            torch.full((200,), 9), torch.full((200,), key), positions, mask_id=MASK, vocab_size=VOCAB, seed=11
        )
        for position in range(200):
            draw = mix((mix(key ^ (11 * golden % 2**64)) + position * golden) % 2**64)
            if draw >> 40 >= round(0.3 * 2**24):
                expected = 9, -100
            elif draw % 2**24 < round(0.8 * 2**24):
                expected = MASK, 9
            elif draw % 2**24 < round(0.9 * 2**24):
                expected = (mix(draw) >> 1) % VOCAB, 9
            else:
                expected = 9, 9
            assert (int(masked[position]), int(labels[position])) == expected


def test_special_tokens():
    keep = collator(rate=1.0)([feature(1), feature(2)])
    special = torch.isin(keep["input_ids"], torch.tensor([CLS, SEP])) & (keep["labels"] == -100)
    assert int((keep["labels"] == -100).sum()) == 4 == int(special.sum())
    assert keep["input_ids"][0, 0] == CLS and keep["input_ids"][0, -1] == SEP
    paper = collator(rate=1.0, special_tokens="mask")([feature(1), feature(2)])
    assert (paper["labels"] != -100).all() and paper["labels"][0, 0] == CLS and paper["labels"][0, -1] == SEP


def test_nothing_masked_is_legal():
    batch = collator(rate=0.0)([feature(1)])
    assert (batch["labels"] == -100).all() and batch["input_ids"][0].tolist() == feature()["input_ids"].tolist()


def test_a_filler_costs_nothing():
    batch = collator(rate=1.0)([feature(-3, 30, sentence_order_label=1), feature(3, 30, sentence_order_label=1)])
    filler, text = texts_of(batch)
    assert set(filler[1]) == {-100} and set(text[1][1:-1]) != {-100}
    assert filler[0] == feature(0, 30)["input_ids"].tolist()
    assert batch["sentence_order_label"].tolist() == [-100, 1]


def test_batch_has_what_accelerated_models_take():
    batch = collator()([feature(1, 5), feature(2, 9)])
    shapes = {name: tuple(value.shape) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    flat = dict.fromkeys(("input_ids", "position_ids", "labels"), (1, 18))
    assert shapes == {**flat, "cu_seq_lens_q": (3,), "cu_seq_lens_k": (3,)}
    assert batch["max_length_q"] == batch["max_length_k"] == 11


def test_on_device_masks_the_same_later():
    features = [feature(key, 10 + key) for key in range(5)]
    later = collator(on_device=True)
    batch = later(features)
    assert "labels" not in batch and batch["keys"].tolist() == list(range(5))
    masked, expected = later.mask(batch), collator()(features)
    assert masked.keys() == expected.keys()
    assert torch.equal(masked["input_ids"], expected["input_ids"]) and torch.equal(masked["labels"], expected["labels"])


def test_features_of_a_plain_trainer_are_drawn_anew_and_repeat_with_torchs_seed():
    padded = {"input_ids": [*feature()["input_ids"].tolist(), 3, 3], "attention_mask": [1] * 62 + [0, 0]}
    first, second = collator()([padded]), collator()([padded])
    assert first["input_ids"].shape == (1, 62)
    assert not torch.equal(first["labels"], second["labels"])
    torch.manual_seed(0)
    assert torch.equal(collator()([padded])["labels"], first["labels"])


def test_from_tokenizer(tiny_checkpoint):
    transformers = pytest.importorskip("transformers")
    from modernbert_fast.training.tokenizer import ROLES

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tiny_checkpoint / "tokenizer.json"), **ROLES)
    made = MaskedLMCollator.from_tokenizer(tokenizer, rate=0.15)
    assert made == MaskedLMCollator(4, 512, (0, 1, 2, 3, 4), rate=0.15)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"rate": 1.5}, "rate must be"),
        ({"special_tokens": "some"}, "must be 'keep'"),
        ({"mask_id": 100}, "mask_id must"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        collator(**options)([feature(1)])
    for empty in ([], [{"input_ids": []}]):
        with pytest.raises(ValueError, match="at least"):
            collator()(empty)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to compare with")
def test_devices_agree():
    ids = torch.randint(VOCAB, (10_000,))
    keys, positions = torch.arange(10_000) // 100, torch.arange(10_000) % 100
    cpu = mask_tokens(ids, keys, positions, **OPTIONS)
    gpu = mask_tokens(ids.cuda(), keys.cuda(), positions.cuda(), **OPTIONS)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu, gpu, strict=True))
