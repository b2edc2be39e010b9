"""Bad input raises a clear Python error or has a defined result, and the next call works."""

import copy

import hf_models as hf
import pytest
import torch
from hf_models import MLM, mask, right

import modernbert_fast as mf
from modernbert_fast import library
from modernbert_fast.ops import padding

pytestmark = pytest.mark.usefixtures("one_thread")


BAD_IDS = {"negative": -1, "vocabulary size": hf.VOCAB, "2 ** 31": 2**31}


@pytest.mark.parametrize("value", BAD_IDS.values(), ids=BAD_IDS.keys())
@pytest.mark.parametrize("kind", ["none", "right"])
def test_ids_outside_the_vocabulary_raise_and_the_next_call_works(fast, value, kind):
    given = hf.batch(kind).inputs("ModernBertModel")
    bad = given["input_ids"].clone()
    bad[0, 3] = value
    with pytest.raises(IndexError, match="rang|outside|ids"):
        fast(**{**given, "input_ids": bad})
    assert fast(**given).last_hidden_state.isfinite().all()


def test_bad_ids_under_padding_cost_nothing(fast):
    given = right()
    bad = given["input_ids"].masked_fill(~mask(), -1)
    assert torch.equal(fast(**{**given, "input_ids": bad}).last_hidden_state, fast(**given).last_hidden_state)


@pytest.mark.parametrize("B, S", [(0, 5), (3, 0), (0, 0)])
@pytest.mark.parametrize("architecture", ["ModernBertModel", MLM, "ModernBertForTokenClassification"])
def test_empty_batches_give_empty_results(architecture, B, S):
    fast = mf.accelerate(hf.build(architecture, hf.tiny_config()))
    for given in ({}, {"attention_mask": torch.ones(B, S, dtype=torch.long)}):
        output = fast(torch.zeros(B, S, dtype=torch.long), **given)[0]
        assert output.shape[:2] == (B, S)


def test_empty_batches_of_pooling_classes():
    fast = mf.accelerate(hf.build("ModernBertForSequenceClassification", hf.tiny_config()))
    assert fast(torch.zeros(0, 5, dtype=torch.long)).logits.shape == (0, 2)


@pytest.mark.parametrize("architecture", [a for a in hf.ARCHITECTURES if a != "ModernBertForMultipleChoice"])
def test_texts_of_padding_only_are_finite_and_disturb_nobody(architecture):
    fast = mf.accelerate(hf.build(architecture, hf.tiny_config())).train()
    batch = hf.batch("right")
    emptied = batch.mask.clone()
    emptied[2] = False
    expected = fast(batch.ids, attention_mask=batch.mask.long())[0]
    output = fast(batch.ids, attention_mask=emptied.long(), **batch.targets(architecture, fast.config))
    others = [0, 1, 3]
    values = output.logits if "logits" in output else output[0 if "loss" not in output else 1]
    assert values.isfinite().all()
    assert hf.relative(values[others], expected[others]) <= 1e-5
    if "loss" in output:
        output.loss.backward()
        assert all(gradient.isfinite().all() for gradient in hf.gradients(fast).values())
    nothing = fast(batch.ids, attention_mask=torch.zeros_like(batch.ids))[0]
    assert nothing.isfinite().all()


def test_wrong_shapes_raise_by_name(fast):
    given = right()
    with pytest.raises(ValueError, match="attention_mask"):
        fast(given["input_ids"], attention_mask=torch.ones(4, 32))
    with pytest.raises(ValueError, match="attention_mask"):
        fast(given["input_ids"], attention_mask=torch.ones(3, 33))
    with pytest.raises(ValueError, match="exactly one"):
        fast(input_ids=None)
    with pytest.raises(ValueError, match="exactly one"):
        fast(given["input_ids"], inputs_embeds=torch.zeros(4, 33, 32))
    assert fast(**given).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("bad", BAD_IDS.values(), ids=BAD_IDS.keys())
def test_ids_outside_the_table_are_seen_before_any_kernel(fast, monkeypatch, bad):
    """As on a GPU, where the embedding op does not look; ids under padding do not count, and the next call works."""
    monkeypatch.setattr("modernbert_fast.hf_encoder.host_readable", lambda x: False)
    ids, mask = hf.batch("right").ids.clone(), hf.batch("right").mask
    expected = fast(ids, attention_mask=mask).last_hidden_state
    ids[~mask] = bad
    assert torch.equal(fast(ids, attention_mask=mask).last_hidden_state, expected)
    for kept in (mask, None):
        hostile = ids.masked_fill(~mask, 0)
        hostile[0, 0] = bad
        with pytest.raises(IndexError, match=rf"input_ids holds {bad}, outside \[0, {hf.VOCAB}\)"):
            fast(hostile, attention_mask=kept)
    assert torch.equal(fast(ids, attention_mask=mask).last_hidden_state, expected)


def test_what_the_host_asks_for_it_asks_before_it_waits(fast, monkeypatch):
    """A padded call on a GPU waits once, for the number of tokens; what else it reads is on its way by then."""
    seen = []
    monkeypatch.setattr("modernbert_fast.hf_encoder.host_readable", lambda x: False)
    for name in ("__init__", "get"):
        real = getattr(library.Reading, name)
        monkeypatch.setattr(
            library.Reading, name, lambda self, *x, name=name, real=real: (seen.append(name), real(self, *x))[1]
        )
    plan = padding.plan
    monkeypatch.setattr(padding, "plan", lambda mask: (seen.append("plan"), plan(mask))[1])
    fast(hf.batch("holes").ids, attention_mask=hf.batch("holes").mask)
    assert seen == ["__init__", "__init__", "plan", "get", "get"]


@pytest.mark.parametrize("shape", [(4, 40), (4, 32), (5, 33), (132,)])
@pytest.mark.parametrize("kind", ["none", "right"])
@pytest.mark.parametrize("architecture", [MLM, "ModernBertForTokenClassification"])
def test_labels_of_another_shape_raise(architecture, kind, shape):
    given = hf.batch(kind).inputs(architecture)
    for loss_only in (False, True):
        fast = mf.accelerate(hf.build(architecture, hf.tiny_config()), loss_only=loss_only)
        with pytest.raises(ValueError, match="shape|size"):
            fast(**given, labels=torch.zeros(shape, dtype=torch.long))


DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_of_every_dtype(stock, fast, dtype):
    ids, kept = hf.batch("holes").ids, hf.batch("holes").mask
    expected = fast(ids, attention_mask=kept).last_hidden_state
    assert hf.relative(expected[kept], stock(ids, attention_mask=kept).last_hidden_state[kept]) <= 1e-5
    assert torch.equal(fast(ids, attention_mask=kept.to(dtype)).last_hidden_state, expected)


def test_the_report_names_every_op(fast):
    text = str(mf.report(fast))
    for op in mf.dispatch.TABLE:
        assert op in text
    assert "packed" in text
    assert "in float32" not in text
    half = str(mf.report(copy.deepcopy(fast).half()))
    row = mf.dispatch.explain("linear", mf.dispatch.Call("cpu", frozenset((torch.float16,)), 64))
    served = next(backend for backend, objections in row if not objections)
    assert (f"{served} (multiplies float16 in float32)" in half) == (served != "aten")
    assert "call accelerate()" in str(mf.report(mf.restore(fast)))
