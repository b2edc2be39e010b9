"""The loss of masked tokens: gradients by the error rule, sums over micro-batches, and no logits in memory."""

import copy
import json
import subprocess
import sys

import hf_models as hf
import pytest
import torch
import torch.nn.functional as F
from hf_models import MLM

import modernbert_fast as mf
from modernbert_fast import dispatch, heads
from modernbert_fast.testing.errors import assert_as_good_as

pytestmark = pytest.mark.usefixtures("one_thread")

T, V, C = 700, 301, 64  # 700 tokens give a chunk of 512 and one that is not full


def problem(dtype, labelled):
    """A masked language model, rows (T, C) of an encoder and labels (T,)."""
    config = hf.tiny_config(hidden_size=C, vocab_size=V, decoder_bias=True)
    model = hf.build(MLM, config).to(dtype)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(V, (T,), generator=generator)
    labels[torch.rand(T, generator=generator) >= labelled] = -100
    return model, torch.randn(T, C, generator=generator).to(dtype), labels


def plain(model, hidden, labels):
    """All logits, as transformers does it."""
    return F.cross_entropy(
        model.decoder(model.head(hidden)).to(torch.promote_types(hidden.dtype, torch.float32)), labels
    )


def gradients(loss, model, hidden, labels):
    """The loss and its gradients by name: of the rows, the head and the decoder."""
    model, hidden = copy.deepcopy(model), hidden.clone().requires_grad_()
    value = loss(model, hidden, labels)
    value.backward()
    parts = {**dict(model.head.named_parameters()), **dict(model.decoder.named_parameters())}
    assert set(parts) == {"dense.weight", "norm.weight", "weight", "bias"}
    return {"loss": value.detach(), "hidden": hidden.grad, **{name: part.grad for name, part in parts.items()}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("labelled", [0.3, 1.0])
def test_gradients_keep_the_error_rule(dtype, labelled):
    model, hidden, labels = problem(dtype, labelled)
    same_dtype = gradients(plain, model, hidden, labels)
    truth = gradients(plain, copy.deepcopy(model).double(), hidden.double(), labels)
    with dispatch.use_backend("reference", "cross_entropy"):
        found = gradients(heads.masked_lm_loss, model, hidden, labels)
    for name, got in found.items():
        assert_as_good_as(got, same_dtype[name], truth[name], name)


@pytest.mark.parametrize("items", [None, 0, 11, torch.tensor(0)])
def test_nothing_labelled_is_zero_with_zero_gradients(items):
    model, hidden, labels = problem(torch.float32, 0.0)
    found = gradients(lambda *given: heads.masked_lm_loss(*given, items), model, hidden, labels)
    assert found["loss"] == 0
    for name, gradient in found.items():  # each is there: DDP waits for all
        assert gradient is not None and not gradient.any() and gradient.isfinite().all(), name


@pytest.mark.parametrize("loss_only", [False, True])
def test_micro_batches_of_different_counts_sum_to_the_step(mlm, loss_only):
    """One of them has nothing labelled."""
    fast = mf.accelerate(mlm, strict=True, loss_only=loss_only)
    batch = hf.batch("none")
    labels = torch.where(torch.arange(33) < torch.tensor([[30], [0], [2], [9]]), batch.ids, -100)
    whole = fast(input_ids=batch.ids, labels=labels).loss
    whole.backward()
    expected = {name: gradient.clone() for name, gradient in hf.gradients(fast).items()}
    fast.zero_grad()
    total = 0
    for ids, kept in zip(batch.ids, labels, strict=True):
        loss = fast(input_ids=ids[None], labels=kept[None], num_items_in_batch=41).loss
        loss.backward()
        total += loss.detach()
    assert hf.relative(total, whole) <= 1e-5
    worst = hf.gradient_error(hf.gradients(fast), expected)
    assert worst[0] <= 1e-4, worst


MEMORY = """
import json, sys, torch
import torch.nn.functional as F
from modernbert_fast import dispatch, heads, timing
from modernbert_fast.config import EncoderConfig
from modernbert_fast.model import ModernBertWithHead
torch.set_num_threads(1)
T, V, C = 4096, 20_000, 64
sizes = dict(hidden_size=C, vocab_size=V, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1)
model = ModernBertWithHead(EncoderConfig(**sizes, pad_token_id=0), "ModernBertForMaskedLM")
hidden = torch.randn(T, C).requires_grad_()
labels = torch.where(torch.rand(T) < 0.3, torch.randint(V, (T,)), -100)
def fused(n):
    heads.masked_lm_loss(model, hidden[:n], labels[:n]).backward()
def plain(n):
    F.cross_entropy(heads.vocabulary_logits(model, hidden[:n]), labels[:n]).backward()
with dispatch.use_backend("reference", "cross_entropy"):
    run = {"fused": fused, "plain": plain}[sys.argv[1]]
    run(8)  # code pages, and the gradients
    print(json.dumps(timing.peak_memory(lambda: run(T))[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak")
def test_no_more_logits_than_a_chunk_are_in_memory():
    """4,096 tokens, a third of them labelled; 327 MB of logits, and 41 MB of a chunk of 512."""
    peaks = {}
    for way in ("fused", "plain"):
        command = [sys.executable, "-c", MEMORY, way]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=hf.environment())
        peaks[way] = json.loads(answer.stdout)
    assert 41e6 < peaks["fused"] < 41e6 + 30e6, peaks
    assert peaks["plain"] > 327e6, peaks
