"""Tokens that are not attended to, from transformers' call to the ops: what stock gives by a mask of padded rows."""

import copy

import hf_models as hf
import pytest
import torch

import modernbert_fast as mf
from modernbert_fast import dispatch, library
from modernbert_fast.dispatch import QUERIES_ONLY, Call
from modernbert_fast.ops.encoder_layer import one_call_serves
from modernbert_fast.testing import assert_same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

S = 33
KINDS = ("right", "left", "holes")


@pytest.fixture(scope="module")
def stock():
    """A window of 3, so that some of an expansion has nothing in it to see."""
    return hf.build("ModernBertModel", hf.tiny_config(local_attention=6))


@pytest.fixture(scope="module")
def fast(stock):
    return mf.accelerate(copy.deepcopy(stock), strict=True)


def expanded(kind):
    """Inputs, and which places hold a token: two thirds of the padding do."""
    batch = hf.batch(kind)
    generator = torch.Generator().manual_seed(5)
    ids = torch.where(batch.mask, batch.ids, torch.randint(hf.VOCAB, batch.ids.shape, generator=generator))
    near = torch.arange(S) < 22 if kind == "right" else torch.arange(S) >= 11
    unattended = ~batch.mask & near
    return {"input_ids": ids, "attention_mask": batch.mask.long(), "unattended": unattended}, batch.mask | unattended


def rows(model, inputs, tokens):
    """Of the tokens (T, C), and the gradient of every parameter."""
    model.zero_grad()
    found = model(**inputs).last_hidden_state[tokens]
    (found * found.detach().cos()).mean().backward()
    return found.detach(), hf.gradients(model)


@pytest.mark.parametrize("kind", KINDS)
def test_as_transformers(stock, fast, kind):
    inputs, tokens = expanded(kind)
    found, gradients = rows(fast, inputs, tokens)
    assert fast(**inputs).last_hidden_state[~tokens].eq(0).all()
    del inputs["unattended"]
    expected, stock_gradients = rows(stock, inputs, tokens)
    assert hf.relative(found, expected) <= 1e-5
    assert hf.gradient_error(gradients, stock_gradients)[0] <= 1e-4
    assert hf.relative(fast(**inputs).last_hidden_state[tokens], expected) > 0.1  # it is what makes the difference


def test_end_to_end_and_in_one_text_a_call(fast):
    """Flattened, and alone: the same bits."""
    inputs, tokens = expanded("right")
    with torch.no_grad():
        together = fast(**inputs).last_hidden_state[tokens]
        flat = {name: inputs[name][tokens][None] for name in ("input_ids", "unattended")}
        lengths = tokens.sum(1).tolist()
        packed = fast(**flat, **hf.packed_kwargs(lengths)).last_hidden_state[0]
        assert_same_bits(packed, together)
        for b, part in enumerate(together.split(lengths)):
            alone = fast(**{name: x[[b]] for name, x in inputs.items()}).last_hidden_state[0]
            assert_same_bits(alone[tokens[b]], part)


def test_where_all_are_attended_to_nothing_changes(fast):
    """On the CPU, whose row serves both: not a bit."""
    batch = hf.batch("right")
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
    with torch.no_grad():
        plain = fast(**inputs).last_hidden_state
        assert_same_bits(fast(**inputs, unattended=torch.zeros_like(batch.mask)).last_hidden_state, plain)


@pytest.mark.parametrize("worse", [lambda x: x[:, 1:], lambda x: x[0], lambda x: x.to("meta")])
@pytest.mark.parametrize("flat", [False, True])
def test_bad_input(fast, worse, flat):
    inputs, tokens = expanded("right")
    if flat:
        inputs = {name: inputs[name][tokens][None] for name in ("input_ids", "unattended")}
        inputs |= hf.packed_kwargs(tokens.sum(1).tolist())
    with torch.no_grad():
        before = fast(**inputs).last_hidden_state
        with pytest.raises(ValueError, match="unattended"):
            fast(**inputs | {"unattended": worse(inputs["unattended"])})
        assert_same_bits(fast(**inputs).last_hidden_state, before)


def test_ids_of_the_expansion_are_checked(fast):
    inputs, tokens = expanded("right")
    inputs["input_ids"][inputs["unattended"]] = hf.VOCAB
    with torch.no_grad(), pytest.raises(IndexError):
        fast(**inputs)


def test_the_stock_path_gives_the_same(stock, fast):
    slow = mf.accelerate(copy.deepcopy(stock))
    inputs, tokens = expanded("right")
    with torch.no_grad():
        found = slow(**inputs, output_attentions=True).last_hidden_state[tokens]
        expected = fast(**inputs).last_hidden_state[tokens]
        assert hf.relative(found, expected) <= 1e-5
        inputs["attention_mask"] = tokens.long()  # which does not say whom nobody sees
        assert hf.relative(slow(**inputs, output_attentions=True).last_hidden_state[tokens], expected) <= 1e-5
    bounds = torch.arange(len(tokens) + 1, dtype=torch.int32) * S
    ends = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": S, "max_length_k": S}
    with pytest.raises(NotImplementedError, match="end to end"):
        slow(
            inputs["input_ids"].view(1, -1), unattended=inputs["unattended"].view(1, -1), **ends, output_attentions=True
        )


def test_who_serves_it():
    """On a GPU Triton; a layer in one call where a compiled row has it."""
    call = Call("cuda", frozenset({torch.bfloat16}), 64, frozenset({QUERIES_ONLY}), (9, 0))
    for op in ("attention", "encoder_layer"):
        (row,) = (row for row in dispatch.TABLE[op] if row.backend == "cuda")
        assert f"does not do {QUERIES_ONLY}" in row.objections(op, call)
    (triton,) = (row for row in dispatch.TABLE["attention"] if row.backend == "triton")
    assert not any("does not do" in why for why in triton.objections("attention", call))
    x, attended = torch.zeros(2, 64), torch.ones(2, dtype=torch.bool)
    with torch.no_grad():
        assert one_call_serves(x, None, 64, attended) == (library.isa() != "none")
