"""Training an accelerated model: checkpointing, dropout, losses, optimizer steps, resizing, dtypes."""

import contextlib
import copy
import sys

import hf_models as hf
import pytest
import torch
from hf_models import MLM, mask, right

import modernbert_fast as mf
from modernbert_fast import library

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_runs_each_layer_twice(mlm, reentrant, monkeypatch):
    batch = hf.batch("right")
    given = {**batch.inputs(MLM), **batch.targets(MLM, mlm.config)}
    fast = mf.accelerate(mlm).train()
    calls, run = [], mf.encoder.layer
    monkeypatch.setattr(mf.encoder, "layer", lambda *args: calls.append(1) or run(*args))
    results = []
    for checkpointed, expected_calls in ((False, 3), (True, 6)):
        if checkpointed:
            fast.gradient_checkpointing_enable({"use_reentrant": reentrant})
            fast.enable_input_require_grads()
        calls.clear()
        fast.zero_grad()
        fast(**given).loss.backward()
        assert len(calls) == expected_calls
        results.append({name: gradient.clone() for name, gradient in hf.gradients(fast).items()})
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        assert hf.relative(results[1][name], gradient) <= 1e-5, name


@pytest.mark.parametrize("where", ["embedding_dropout", "mlp_dropout", "classifier_dropout"])
def test_dropout_drops_as_often_as_it_should(where):
    """Zeros are counted where the dropout is, and the expected loss is that of transformers."""
    architecture = "ModernBertForTokenClassification"
    fast = mf.accelerate(hf.build(architecture, hf.tiny_config(**{where: 0.4}))).train()
    module = {
        "embedding_dropout": fast.model.embeddings.drop,
        "mlp_dropout": fast.model.layers[0].mlp.drop,
        "classifier_dropout": fast.drop,
    }[where]
    zeros = []
    module.register_forward_hook(lambda m, args, output: zeros.append((output == 0).float().mean()))
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(fast(**hf.batch("none").inputs(architecture)).logits)
    assert all(0.3 < rate < 0.5 for rate in zeros)
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("where", ["embedding_dropout", "mlp_dropout"])
def test_dropout_without_padding_is_that_of_transformers_for_a_seed(where):
    stock = hf.build("ModernBertModel", hf.tiny_config(**{where: 0.4})).train()
    fast = mf.accelerate(copy.deepcopy(stock))
    results = []
    for model in (stock, fast):
        torch.manual_seed(0)
        results.append(model(**hf.batch("none").inputs("ModernBertModel")).last_hidden_state)
    assert hf.relative(results[1], results[0]) <= 1e-5


def test_loss_only_gives_the_loss_without_logits(mlm):
    batch = hf.batch("right")
    given = {**batch.inputs(MLM), **batch.targets(MLM, mlm.config)}
    frugal = mf.accelerate(copy.deepcopy(mlm), loss_only=True)
    full = mf.accelerate(mlm)
    for items in ({}, {"num_items_in_batch": 5}):
        outputs = []
        for model in (full, frugal):
            model.zero_grad()
            outputs.append(model(**given, **items))
            outputs[-1].loss.backward()
        assert outputs[1].logits is None
        assert hf.relative(outputs[1].loss, outputs[0].loss) <= 1e-5
        for name, gradient in hf.gradients(full).items():
            assert hf.relative(hf.gradients(frugal)[name], gradient) <= 1e-4, name
    assert frugal(**batch.inputs(MLM)).logits.shape == (4, 33, hf.VOCAB)


@pytest.mark.parametrize("loss_only", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_nothing_labelled_is_a_loss_of_zero(loss_only, sparse):
    """transformers gives NaN here, and a NaN ends a training run."""
    fast = mf.accelerate(hf.build(MLM, hf.tiny_config(sparse_prediction=sparse)), loss_only=loss_only)
    loss = fast(**right(), labels=torch.full((4, 33), -100)).loss
    loss.backward()
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in hf.gradients(fast).values())


def test_one_optimizer_step_is_that_of_transformers(mlm):
    batch = hf.batch("right")
    given = {**batch.inputs(MLM), **batch.targets(MLM, mlm.config)}
    models = [mlm, mf.accelerate(copy.deepcopy(mlm))]
    losses = []
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        trail = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(**given).loss
            loss.backward()
            optimizer.step()
            trail.append(loss.detach())
        losses.append(torch.stack(trail))
    assert losses[0][-1] < losses[0][0]
    assert hf.relative(losses[1], losses[0]) <= 1e-5


def test_replicas_of_data_parallel(mlm, monkeypatch):
    """torch copies to GPUs only; this replica is one's own, and has attributes where parameters were."""
    replicate = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(
        replicate,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach=False: [[tensor.view_as(tensor) for tensor in tensors] for _ in devices],
    )
    batch = hf.batch("right")
    given = {**batch.inputs(MLM), **batch.targets(MLM, mlm.config)}
    mlm(**given).loss.backward()
    expected = {name: gradient.clone() for name, gradient in hf.gradients(mlm).items()}
    fast = mf.accelerate(mlm, strict=True)
    fast.zero_grad()
    (replica,) = replicate.replicate(fast, [0])
    assert not list(replica.parameters())
    replica(**given).loss.backward()
    for name, gradient in expected.items():
        assert hf.relative(hf.gradients(fast)[name], gradient) <= 1e-4, name


def test_embedding_gradients_scaled_by_frequency(stock):
    stock.embeddings.tok_embeddings.scale_grad_by_freq = True
    fast = mf.accelerate(copy.deepcopy(stock))
    for model in (stock, fast):
        model(**right()).last_hidden_state[mask()].square().mean().backward()
    for name, gradient in hf.gradients(stock).items():
        assert hf.relative(hf.gradients(fast)[name], gradient) <= 1e-4, name


def test_resize_token_embeddings(mlm):
    fast = mf.accelerate(copy.deepcopy(mlm))
    batch = hf.batch("right")
    fast(**batch.inputs(MLM))
    for model in (mlm, fast):
        torch.manual_seed(0)
        model.resize_token_embeddings(hf.VOCAB + 6)
    ids = batch.ids.clone()
    ids[0, 3] = hf.VOCAB + 5
    expected, actual = (model(ids, attention_mask=batch.mask).logits[batch.mask] for model in (mlm, fast))
    assert actual.shape[-1] == hf.VOCAB + 6
    assert hf.relative(actual, expected) <= 1e-5
    labels = ids.masked_fill(~batch.mask, -100)
    loss_only = mf.accelerate(fast, loss_only=True)
    assert (
        hf.relative(
            loss_only(ids, attention_mask=batch.mask, labels=labels).loss,
            mlm(ids, attention_mask=batch.mask, labels=labels).loss,
        )
        <= 1e-5
    )


def test_autocast_keeps_the_residual_in_fp32(mlm):
    batch = hf.batch("right")
    given = {**batch.inputs(MLM), **batch.targets(MLM, mlm.config)}
    fast = mf.accelerate(copy.deepcopy(mlm))
    truth = mlm(**given)
    flows = []
    for model in (mlm, fast):
        dtypes = {}
        for name in ("model.embeddings", "model.layers.1", "model.layers.1.mlp.Wi", "model.layers.1.attn.Wqkv"):
            hook = lambda m, args, output, name=name, to=dtypes: to.__setitem__(name, output.dtype)  # noqa: E731
            model.get_submodule(name).register_forward_hook(hook)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(**given)
        output.loss.backward()
        flows.append((dtypes, output.logits.dtype, output.loss.dtype))
        errors = (output.logits - truth.logits)[batch.mask[..., None].expand_as(truth.logits)]
        flows[-1] += (errors.float().square().mean().sqrt(),)
        assert {gradient.dtype for gradient in hf.gradients(model).values()} == {torch.float32}
    assert flows[1][:3] == flows[0][:3]
    assert flows[1][0]["model.layers.1"] == torch.float32
    assert flows[1][3] <= 1.1 * flows[0][3]


def test_fp32_norms_in_a_bf16_model(stock):
    """As PEFT leaves a model prepared for training in low precision; transformers itself cannot run it."""
    truth = copy.deepcopy(stock)
    fast = mf.accelerate(stock.bfloat16())
    for name, parameter in fast.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.float()
    with torch.no_grad():
        actual = fast(**right()).last_hidden_state[mask()]
        expected = truth(**right()).last_hidden_state[mask()]
    assert hf.relative(actual, expected) < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_the_model_keeps_rope_exact(dtype):
    """.half() rounds transformers' rotary buffers, and far positions lose their place; ours come from the config."""
    S = 700
    config = hf.tiny_config(
        hidden_size=64, num_attention_heads=1, max_position_embeddings=2048, num_hidden_layers=1, local_attention=16
    )
    truth = hf.build("ModernBertModel", config)
    for parameter in truth.parameters():
        parameter.data = parameter.data.to(dtype).float()
    with torch.no_grad():
        truth.layers[0].attn.Wqkv.weight[:128] *= 3  # sharp attention shows where a key is thought to be
    stock = copy.deepcopy(truth).to(dtype)
    fast = mf.accelerate(copy.deepcopy(truth)).to(dtype)
    ids = torch.randint(hf.VOCAB, (1, S), generator=torch.Generator().manual_seed(0))
    positions = torch.linspace(0, 2047, S).long()[None]
    with torch.no_grad():
        expected = truth(ids, position_ids=positions).last_hidden_state
        errors = [
            float((model(ids, position_ids=positions).last_hidden_state.float() - expected).square().mean().sqrt())
            for model in (stock, fast)
        ]
    assert errors[1] < 0.5 * errors[0], errors


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
def test_thirty_steps_by_triton_are_those_of_transformers(checkpointed):
    """Every op that has a Triton row takes it, forward and backward, in the interpreter.

    By SGD: Adam divides by the size of a gradient, rounding with it where that is next to nothing.
    """
    if not library.interprets_triton():
        pytest.skip("needs Triton's interpreter")
    layers = ["full_attention", "sliding_attention"]
    config = hf.tiny_config(num_hidden_layers=2, num_attention_heads=1, layer_types=layers)
    stock = hf.build(MLM, config).train()
    fast = mf.accelerate(copy.deepcopy(stock), loss_only=True)
    if checkpointed:
        fast.gradient_checkpointing_enable({"use_reentrant": False})
    batches = [hf.batch(kind, seed=seed, S=11) for seed, kind in enumerate(("right", "left"))]
    batches = [hf.Batch(batch.kind, batch.ids[2:], batch.mask[2:], batch.seed) for batch in batches]  # of two texts
    curves = []
    for model in (stock, fast):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        losses = []
        with contextlib.ExitStack() as forced:
            if model is fast:
                hf.force_triton(forced)
            for step in range(30):
                batch = batches[step % len(batches)]
                optimizer.zero_grad()
                loss = model(**batch.inputs(MLM), **batch.targets(MLM, model.config)).loss
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        curves.append(torch.stack(losses))
    assert curves[0][-3:].mean() < 0.8 * curves[0][:3].mean()  # it learns
    assert hf.relative(curves[1], curves[0]) <= 1e-5
    for (name, one), other in zip(stock.named_parameters(), fast.parameters(), strict=True):
        assert hf.relative(other, one) <= 1e-5, name
