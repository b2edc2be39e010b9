"""An accelerated model is still the model its user had: outputs, state, copies, restore(), the stock path."""

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
from hf_models import MLM, mask, right
from transformers.utils import output_capturing

import modernbert_fast as mf

pytestmark = pytest.mark.usefixtures("one_thread")

AT_LEAST_5_20 = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 20)


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


@pytest.mark.parametrize("architecture", hf.EVERY[1:])
def test_hidden_states_of_heads(architecture):
    stock = hf.build(architecture, hf.tiny_config())
    fast = mf.accelerate(copy.deepcopy(stock))
    given = right(architecture)
    expected = stock(**given, output_hidden_states=True).hidden_states
    actual = fast(**given, output_hidden_states=True).hidden_states
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert hf.relative(one[mask()], other[mask()]) <= 1e-5


@pytest.mark.parametrize("architecture", hf.EVERY)
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


@pytest.mark.parametrize("architecture", hf.EVERY)
def test_return_dict_of_none_leaves_it_to_the_config(architecture):
    stock = hf.build(architecture, hf.tiny_config())
    expected = stock(**right(architecture), return_dict=None)
    assert type(mf.accelerate(stock)(**right(architecture), return_dict=None)) is type(expected)


@pytest.mark.parametrize("architecture", hf.EVERY)
def test_the_class_of_an_accelerated_model_makes_stock_ones(architecture, tmp_path):
    stock = hf.build(architecture, hf.tiny_config())
    expected = stock(**right(architecture))[0]
    fast = mf.accelerate(stock)
    fast.save_pretrained(tmp_path)
    made = type(fast)(fast.config).eval()
    made.load_state_dict(fast.state_dict())
    for model in (made, type(fast).from_pretrained(tmp_path).eval()):
        assert not mf.is_accelerated(model)
        assert torch.equal(model(**right(architecture))[0], expected)


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


@pytest.mark.parametrize("architecture", hf.EVERY)
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
    assert isinstance(model, hf.kind(architecture))
    model.save_pretrained(tmp_path / "after")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "after" / file).read_bytes() == (tmp_path / "before" / file).read_bytes()
    assert json.loads((tmp_path / "after/config.json").read_text())["architectures"] == [architecture]
    again = mf.accelerate(type(model).from_pretrained(tmp_path / "after"))
    with torch.no_grad():
        one, other = (hf.batch("right").rows(architecture, m.eval()(**right(architecture))) for m in (model, again))
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


def test_accelerated_gives_former_settings_back(stock):
    fast = mf.accelerate(stock, restart_position_ids=True)
    classes, former = [type(module) for module in fast.modules()], fast.modernbert_fast_settings
    with mf.accelerated(fast, strict=True):
        assert fast.modernbert_fast_settings.strict
    assert fast.modernbert_fast_settings is former and not former.strict
    assert [type(module) for module in fast.modules()] == classes


def test_what_is_not_there_raises():
    with pytest.raises(ValueError, match="no transformers ModernBertModel"):
        mf.accelerate(torch.nn.Linear(2, 2))


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
    # Whether an accelerated class was ever constructed (by pickle, from_pretrained) must not matter.
    for key in [key for key in output_capturing._CAN_RECORD_REGISTRY if "modernbert_fast" in str(key)]:
        del output_capturing._CAN_RECORD_REGISTRY[key]
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


def test_strict_refuses_a_rope_that_it_cannot_run_and_changes_nothing(stock):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    config = hf.tiny_config(rope_parameters={"full_attention": rope, "sliding_attention": rope})
    models = torch.nn.ModuleList([stock, hf.build("ModernBertModel", config)])
    classes = [type(module) for module in models.modules()]
    with pytest.raises(NotImplementedError, match="dynamic"):
        mf.accelerate(models, strict=True)
    assert [type(module) for module in models.modules()] == classes and not mf.is_accelerated(models)


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
