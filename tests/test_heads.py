"""Heads of accelerated models: replaced ones, losses of the user's own, frozen decoders, spans without a token."""

import copy
import sys

import hf_models as hf
import pytest
import torch
import transformers.models.modernbert.modeling_modernbert as modeling

import modernbert_fast as mf

pytestmark = pytest.mark.usefixtures("one_thread")

MLM = "ModernBertForMaskedLM"
TOKENS = "ModernBertForTokenClassification"
QA = "ModernBertForQuestionAnswering"


class Doubled(modeling.ModernBertPredictionHead):
    """Somebody's own head, with the parts of the usual one."""

    def forward(self, hidden_states):
        return 2 * super().forward(hidden_states)


@pytest.mark.parametrize("architecture", hf.EVERY[1:])
def test_a_replaced_head_is_called(architecture):
    batch = hf.batch("right")
    stock = hf.build(architecture, hf.tiny_config())
    given = {**batch.inputs(architecture), **batch.targets(architecture, stock.config)}
    fast = mf.accelerate(copy.deepcopy(stock), strict=True)
    frugal = mf.accelerate(copy.deepcopy(stock), strict=True, loss_only=True)
    for model in (stock, fast, frugal):
        model.head.__class__ = Doubled
    expected, actual = (batch.rows(architecture, model(**given)) for model in (stock, fast))
    assert hf.relative(actual, expected) <= 1e-5
    if architecture == MLM:
        assert hf.relative(frugal(**given).loss, stock(**given).loss) <= 1e-5


OWN_LOSSES = {
    MLM: lambda logits, labels, **kwargs: logits[labels != -100].square().sum(),
    QA: lambda start, end, first, last, **kwargs: start.gather(1, first[:, None]).sum() - end.square().mean(1)[0],
}


@pytest.mark.parametrize("architecture", OWN_LOSSES)
def test_a_loss_function_of_the_models_own_is_used(architecture):
    batch = hf.batch("right")
    stock = hf.build(architecture, hf.tiny_config())
    given = {**batch.inputs(architecture), **batch.targets(architecture, stock.config)}
    stock.loss_function = OWN_LOSSES[architecture]
    fast = mf.accelerate(copy.deepcopy(stock), loss_only=True)
    assert hf.relative(fast(**given).loss, stock(**given).loss) <= 1e-5
    with pytest.raises(NotImplementedError, match="loss function"):
        mf.accelerate(fast, strict=True)(**given)


@pytest.mark.parametrize("architecture", hf.POOLED)
def test_a_loss_function_that_transformers_does_not_call_changes_nothing(architecture):
    given = hf.batch("left").inputs(architecture)
    fast = mf.accelerate(hf.build(architecture, hf.tiny_config()))
    expected = fast(**given).logits
    fast.loss_function = lambda *args, **kwargs: 0
    assert torch.equal(fast(**given).logits, expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_decoder_is_not_differentiated(frozen, monkeypatch):
    fast = mf.accelerate(hf.build(MLM, hf.tiny_config(tie_word_embeddings=False, decoder_bias=True)), loss_only=True)
    fast.decoder.weight.requires_grad_(not frozen)
    module = sys.modules["modernbert_fast.ops.cross_entropy"]
    asked, run = [], module._backward
    monkeypatch.setattr(module, "_backward", lambda *args: asked.append(args[-3:]) or run(*args))
    batch = hf.batch("right")
    fast(**batch.inputs(MLM), **batch.targets(MLM, fast.config)).loss.backward()
    assert (fast.decoder.weight.grad is None) == frozen
    assert asked == [(True, not frozen, True)]
    assert fast.head.dense.weight.grad.any() and fast.decoder.bias.grad.any()


@pytest.mark.parametrize("place", [0, 99])
def test_no_span_with_a_token_is_a_loss_of_zero(place):
    fast = mf.accelerate(hf.build(QA, hf.tiny_config()))
    batch, places = hf.batch("left"), torch.full((3,), place)
    loss = fast(batch.ids[1:], attention_mask=batch.mask[1:].long(), start_positions=places, end_positions=places).loss
    loss.backward()
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in hf.gradients(fast).values())


def test_spans_without_a_token_cost_nothing():
    fast = mf.accelerate(hf.build(QA, hf.tiny_config()))
    batch = hf.batch("left")
    assert batch.mask[:, 0].tolist() == [True, False, False, False]
    losses, grads = [], []
    for rows in (slice(None), slice(1)):
        nowhere = torch.zeros_like(batch.ids[rows, 0])
        fast.zero_grad()
        given = {"input_ids": batch.ids[rows], "attention_mask": batch.mask[rows].long()}
        loss = fast(**given, start_positions=nowhere, end_positions=nowhere).loss
        loss.backward()
        losses.append(loss)
        grads.append({name: gradient.clone() for name, gradient in hf.gradients(fast).items()})
    assert hf.relative(*losses) <= 1e-6
    worst = hf.gradient_error(*grads)
    assert worst[0] <= 1e-4, worst
