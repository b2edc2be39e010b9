"""An accelerated model is still the model its user had: every contract of transformers, and restore()."""

import copy
import io
import json
import logging
import pickle
import subprocess
import sys

import hf_models as hf
import pytest
import torch
import transformers
import transformers.models.modernbert.modeling_modernbert as modeling

import modernbert_fast as mf

pytestmark = pytest.mark.usefixtures("one_thread")

MLM = "ModernBertForMaskedLM"
AT_LEAST_5_20 = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 20)


@pytest.fixture
def stock():
    return hf.build("ModernBertModel", hf.tiny_config())


@pytest.fixture
def fast(stock):
    return mf.accelerate(copy.deepcopy(stock))


@pytest.fixture
def mlm():
    return hf.build(MLM, hf.tiny_config())


def right(architecture="ModernBertModel"):
    return hf.batch("right").inputs(architecture)


def mask():
    return hf.batch("right").mask


# What comes out


def test_hidden_states(stock, fast):
    expected = stock(**right(), output_hidden_states=True)
    actual = fast(**right(), output_hidden_states=True)
    assert len(actual.hidden_states) == len(expected.hidden_states) == 4
    for one, other in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert hf.relative(one[mask()], other[mask()]) <= 1e-5
    assert torch.equal(actual.hidden_states[-1], actual.last_hidden_state)


def test_hidden_states_through_the_config(stock, fast):
    for model in (stock, fast):
        model.config.output_hidden_states = True
    assert len(fast(**right()).hidden_states) == len(stock(**right()).hidden_states)
    assert fast(**right(), output_hidden_states=False).hidden_states is None


@pytest.mark.skipif(not AT_LEAST_5_20, reason="indices of hidden states came with transformers 5.20")
@pytest.mark.parametrize("wanted", [[0], [1, 3], [-1], [0, -2]])
def test_hidden_states_by_index(stock, fast, wanted):
    expected = stock(**right(), output_hidden_states=wanted).hidden_states
    actual = fast(**right(), output_hidden_states=wanted).hidden_states
    assert [state is None for state in actual] == [state is None for state in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one is None or hf.relative(one[mask()], other[mask()]) <= 1e-5


@pytest.mark.parametrize("architecture", hf.ARCHITECTURES[1:])
def test_hidden_states_of_heads(architecture):
    stock = hf.build(architecture, hf.tiny_config())
    fast = mf.accelerate(copy.deepcopy(stock))
    given = right(architecture)
    expected = stock(**given, output_hidden_states=True).hidden_states
    actual = fast(**given, output_hidden_states=True).hidden_states
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert hf.relative(one[mask()], other[mask()]) <= 1e-5


@pytest.mark.parametrize("architecture", hf.ARCHITECTURES)
def test_tuples_and_fields_are_those_of_transformers(architecture):
    batch = hf.batch("right")
    stock = hf.build(architecture, hf.tiny_config())
    fast = mf.accelerate(copy.deepcopy(stock))
    given = {**batch.inputs(architecture), **batch.targets(architecture, stock.config)}
    expected, actual = stock(**given), fast(**given)
    assert type(actual) is type(expected)
    assert list(actual.keys()) == list(expected.keys())
    for states in (False, True):
        asked = {**given, "return_dict": False, "output_hidden_states": states}
        expected, actual = stock(**asked), fast(**asked)
        assert isinstance(actual, tuple)
        assert [type(item) for item in actual] == [type(item) for item in expected]


def test_tuples_through_the_config(stock, fast):
    for model in (stock, fast):
        model.config.return_dict = False
    assert type(fast(**right())) is type(stock(**right())) is tuple


def test_padding_comes_out_as_zeros(fast):
    assert not fast(**right()).last_hidden_state[~mask()].any()


def test_inputs_embeds(stock, fast):
    embeds = stock.embeddings.tok_embeddings.weight.detach()[hf.batch("right").ids].clone().requires_grad_()
    results = []
    for model in (stock, fast):
        rows = model(inputs_embeds=embeds, attention_mask=mask()).last_hidden_state[mask()]
        results.append((rows, torch.autograd.grad(rows.square().mean(), embeds)[0]))
    assert hf.relative(results[1][0], results[0][0]) <= 1e-5
    assert hf.relative(results[1][1], results[0][1]) <= 1e-4


def test_problem_type_is_written_back():
    for labels, kind in (
        (torch.tensor([0, 1, 1, 0]), "single_label_classification"),
        (torch.rand(4, 2), "multi_label_classification"),
    ):
        fast = mf.accelerate(hf.build("ModernBertForSequenceClassification", hf.tiny_config()))
        fast(**right(), labels=labels)
        assert fast.config.problem_type == kind


# What the model is made of


@pytest.mark.parametrize("architecture", hf.ARCHITECTURES)
def test_the_model_keeps_its_tensors_classes_and_config(architecture, tmp_path):
    model = hf.build(architecture, hf.tiny_config())
    model.save_pretrained(tmp_path / "before")
    names = {name: type(module).__name__ for name, module in model.named_modules()}
    tensors = {key: tensor.data_ptr() for key, tensor in model.state_dict().items()}
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    buffers = {name: id(buffer) for name, buffer in model.named_buffers()}
    assert mf.accelerate(model) is model
    model(**right(architecture))
    assert {name: type(module).__name__ for name, module in model.named_modules()} == names
    assert {key: tensor.data_ptr() for key, tensor in model.state_dict().items()} == tensors
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == buffers
    assert isinstance(model, getattr(transformers, architecture))
    model.save_pretrained(tmp_path / "after")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "after" / file).read_bytes() == (tmp_path / "before" / file).read_bytes()
    assert json.loads((tmp_path / "after/config.json").read_text())["architectures"] == [architecture]
    again = mf.accelerate(type(model).from_pretrained(tmp_path / "after"))
    with torch.no_grad():
        one, other = (
            hf.batch("right").rows(architecture, m.eval()(**right(architecture))) for m in (model, again)
        )
    assert torch.equal(one, other)


def test_deepcopy_is_accelerated_and_independent(fast):
    before = fast(**right()).last_hidden_state
    twin = copy.deepcopy(fast)
    assert mf.is_accelerated(twin)
    assert torch.equal(twin(**right()).last_hidden_state, before)
    mf.restore(twin)
    assert mf.is_accelerated(fast) and not mf.is_accelerated(twin)


def test_pickle(fast):
    before = fast(**right()).last_hidden_state
    twin = pickle.loads(pickle.dumps(fast))
    assert mf.is_accelerated(twin)
    assert torch.equal(twin(**right()).last_hidden_state, before)


def test_pickle_in_a_fresh_process(fast, tmp_path):
    torch.save(fast, tmp_path / "model.pt")
    torch.save((right(), fast(**right()).last_hidden_state.detach()), tmp_path / "io.pt")
    program = (
        "import torch; torch.set_num_threads(1)\n"
        "model = torch.load('model.pt', weights_only=False)\n"
        "given, expected = torch.load('io.pt')\n"
        "import modernbert_fast as mf\n"
        "assert mf.is_accelerated(model)\n"
        "assert torch.equal(model(**given).last_hidden_state, expected)\n"
        "mf.restore(model)\n"
        "assert not mf.is_accelerated(model)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=hf.environment())


def test_torch_save_of_the_state(fast, stock):
    buffer = io.BytesIO()
    torch.save(fast.state_dict(), buffer)
    buffer.seek(0)
    stock.load_state_dict(torch.load(buffer))
    with torch.no_grad():
        embeddings = fast.embeddings.tok_embeddings.weight
        embeddings.mul_(1.5)
        stock.load_state_dict(fast.state_dict())
        expected, actual = (model(**right()).last_hidden_state[mask()] for model in (stock, fast))
    assert hf.relative(actual, expected) <= 1e-5


# Undo


def test_restore_gives_the_stock_model_back(mlm):
    batch = hf.batch("right")
    given = {**batch.inputs(MLM), **batch.targets(MLM, mlm.config)}
    classes = [type(module) for module in mlm.modules()]
    expected = mlm(**given, output_hidden_states=True)
    attributes = [set(vars(module)) for module in mlm.modules()]
    mf.accelerate(mlm)(**given, output_hidden_states=True)
    assert mf.restore(mlm) is mlm
    assert [type(module) for module in mlm.modules()] == classes
    assert [set(vars(module)) for module in mlm.modules()] == attributes
    actual = mlm(**given, output_hidden_states=True)
    assert torch.equal(actual.loss, expected.loss)
    assert torch.equal(actual.logits, expected.logits)
    for one, other in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(one, other)


def test_accelerating_twice_is_accelerating_once(fast):
    classes = [type(module) for module in fast.modules()]
    expected = fast(**right()).last_hidden_state
    mf.accelerate(fast)
    assert [type(module) for module in fast.modules()] == classes
    assert torch.equal(fast(**right()).last_hidden_state, expected)
    mf.restore(mf.restore(fast))
    assert type(fast) is transformers.ModernBertModel


def test_accelerated_restores_even_after_an_error(stock):
    with pytest.raises(RuntimeError, match="mine"), mf.accelerated(stock) as inside:
        assert inside is stock and mf.is_accelerated(stock)
        raise RuntimeError("mine")
    assert not mf.is_accelerated(stock)
    assert type(stock) is transformers.ModernBertModel


def test_what_is_not_there_raises():
    with pytest.raises(ValueError, match="no transformers ModernBertModel"):
        mf.accelerate(torch.nn.Linear(2, 2))


# The stock path


def block_mask():
    return hf.batch("none").mask[:, None, :, None].expand(4, 1, 33, 33)


FALLBACKS = {
    "output_attentions": ({"output_attentions": True}, "attention probabilities"),
    "4-D mask": ({"attention_mask": block_mask()}, "4-D"),
    "dict mask": (
        {"attention_mask": {"full_attention": block_mask(), "sliding_attention": block_mask()}},
        "dict",
    ),
}


@pytest.mark.parametrize("kwargs, reason", FALLBACKS.values(), ids=FALLBACKS.keys())
@pytest.mark.parametrize("architecture", ["ModernBertModel", MLM])
def test_the_stock_path_is_exact_and_says_so_once(architecture, kwargs, reason, caplog):
    stock = hf.build(architecture, hf.tiny_config())
    stock.set_attn_implementation("eager" if "output_attentions" in kwargs else "sdpa")
    fast = mf.accelerate(copy.deepcopy(stock))
    given = {"input_ids": hf.batch("none").ids, **kwargs}
    expected = stock(**given, output_hidden_states=True)
    for _ in range(2):
        actual = fast(**given, output_hidden_states=True)
        assert torch.equal(actual[0], expected[0])
        assert len(actual.hidden_states) == len(expected.hidden_states)
        assert all(map(torch.equal, actual.hidden_states, expected.hidden_states))
        if "output_attentions" in kwargs:
            assert len(actual.attentions) == 3
            assert all(map(torch.equal, actual.attentions, expected.attentions))
    said = [record for record in caplog.records if record.name == "modernbert_fast"]
    assert len(said) == 1 and reason in said[0].getMessage()
    assert said[0].levelno == logging.WARNING
    strict = mf.accelerate(fast, strict=True)
    with pytest.raises(NotImplementedError, match=reason):
        strict(**given)
    strict(**right(architecture))


def test_attention_dropout_trains_on_the_stock_path_and_evaluates_packed(caplog):
    stock = hf.build("ModernBertModel", hf.tiny_config(attention_dropout=0.3)).train()
    fast = mf.accelerate(copy.deepcopy(stock))
    results = []
    for model in (stock, fast):
        torch.manual_seed(0)
        results.append(model(**right()).last_hidden_state)
    assert torch.equal(*results)
    assert "dropout of attention probabilities" in caplog.text
    assert hf.relative(fast.eval()(**right())[0][mask()], stock.eval()(**right())[0][mask()]) <= 1e-5


def test_strict_refuses_a_rope_that_it_cannot_run(stock):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    config = hf.tiny_config(rope_parameters={"full_attention": rope, "sliding_attention": rope})
    with pytest.raises(NotImplementedError, match="dynamic"):
        mf.accelerate(hf.build("ModernBertModel", config), strict=True)


def test_a_users_subclass_is_left_alone_and_named(caplog):
    class TheirModel(transformers.ModernBertModel):
        pass

    torch.manual_seed(0)
    model = TheirModel(hf.tiny_config()).eval()
    expected = model(**right()).last_hidden_state
    mf.accelerate(model)
    assert type(model) is TheirModel and not mf.is_accelerated(model)
    assert torch.equal(model(**right()).last_hidden_state, expected)
    assert "TheirModel" in caplog.text
    assert "TheirModel" in str(mf.report(model))
    with pytest.raises(NotImplementedError, match="TheirModel"):
        mf.accelerate(model, strict=True)


def test_a_replaced_part_is_named(stock, caplog):
    class TheirMLP(modeling.ModernBertMLP):
        pass

    stock.layers[1].mlp = TheirMLP(stock.config)
    assert not mf.is_accelerated(mf.accelerate(stock))
    assert "TheirMLP" in caplog.text


def test_a_replaced_activation_is_used(stock):
    stock.layers[1].mlp.act = torch.nn.Tanh()
    expected = stock(**right()).last_hidden_state[mask()]
    actual = mf.accelerate(stock)(**right()).last_hidden_state[mask()]
    assert hf.relative(actual, expected) <= 1e-5


# Hooks


def test_hooks_on_layers_see_packed_rows_and_may_change_them(stock, fast):
    seen = []

    def double(module, args, output):
        seen.append(tuple(output.shape))
        return output * 2

    for model in (stock, fast):
        model.layers[1].register_forward_hook(double)
    expected, actual = (model(**right()).last_hidden_state[mask()] for model in (stock, fast))
    T, C = int(mask().sum()), 32
    assert seen == [(4, 33, C), (T, C)]
    assert hf.relative(actual, expected) <= 1e-5


@pytest.mark.parametrize("name", ["attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo", "attn_norm", "mlp_norm", "mlp.act"])
@pytest.mark.parametrize("pre", [False, True])
def test_hooks_inside_layers_fire_and_may_change_what_they_see(stock, fast, name, pre):
    fired = []

    def halve_input(module, args):
        fired.append(args[0].dim())
        return (args[0] * 0.5,)

    def halve_output(module, args, output):
        fired.append(output.dim())
        return output * 0.5

    for model in (stock, fast):
        module = model.layers[1].get_submodule(name)
        _ = module.register_forward_pre_hook(halve_input) if pre else module.register_forward_hook(halve_output)
    expected, actual = (model(**right()).last_hidden_state[mask()] for model in (stock, fast))
    assert fired == [3, 2]
    assert hf.relative(actual, expected) <= 1e-5


@pytest.mark.parametrize("name", ["embeddings.tok_embeddings", "embeddings.norm", "embeddings", "final_norm"])
def test_hooks_around_the_layers_fire(stock, fast, name):
    for model in (stock, fast):
        model.get_submodule(name).register_forward_hook(lambda module, args, output: output * 0.5)
    expected, actual = (model(**right()).last_hidden_state[mask()] for model in (stock, fast))
    assert hf.relative(actual, expected) <= 1e-5


@pytest.mark.parametrize("name", ["attn", "mlp"])
def test_hooks_on_blocks_fire(stock, fast, name):
    """A block is not called as a module when packed, unless somebody hooked it."""
    for model in (stock, fast):
        model.layers[1].get_submodule(name).register_forward_hook(halve_first)
    expected, actual = (model(**right()).last_hidden_state[mask()] for model in (stock, fast))
    assert hf.relative(actual, expected) <= 1e-5


def halve_first(module, args, output):
    return (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5


def test_hooks_on_the_head_fire(mlm):
    fast = mf.accelerate(copy.deepcopy(mlm))
    for model in (mlm, fast):
        model.head.register_forward_hook(halve_first)
    expected, actual = (model(**right(MLM)).logits[mask()] for model in (mlm, fast))
    assert hf.relative(actual, expected) <= 1e-5


def test_backward_hooks_fire(stock, fast):
    seen = {}
    for name, model in (("stock", stock), ("fast", fast)):
        seen[name] = []
        model.layers[1].mlp.Wi.register_full_backward_hook(lambda m, i, o, to=seen[name]: to.append(i[0]))
        model(**right()).last_hidden_state[mask()].square().mean().backward()
    assert hf.relative(seen["fast"][0], seen["stock"][0][mask()]) <= 1e-4


# Training


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
    assert hf.relative(loss_only(ids, attention_mask=batch.mask, labels=labels).loss,
                       mlm(ids, attention_mask=batch.mask, labels=labels).loss) <= 1e-5


# Dtypes


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


# Input that is not right


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
    assert torch.equal(
        fast(**{**given, "input_ids": bad}).last_hidden_state, fast(**given).last_hidden_state
    )


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
    output = fast(
        batch.ids, attention_mask=emptied.long(), **batch.targets(architecture, fast.config)
    )
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


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32])
def test_masks_of_every_dtype(stock, fast, dtype):
    ids, kept = hf.batch("holes").ids, hf.batch("holes").mask
    expected = stock(ids, attention_mask=kept).last_hidden_state[kept]
    assert hf.relative(fast(ids, attention_mask=kept.to(dtype)).last_hidden_state[kept], expected) <= 1e-5


def test_the_report_names_every_op(fast):
    text = str(mf.report(fast))
    for op in mf.dispatch.TABLE:
        assert op in text
    assert "packed" in text
    assert "call accelerate()" in str(mf.report(mf.restore(fast)))
