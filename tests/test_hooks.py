"""Hooks on any module of an accelerated model fire, and what they return is used."""

import copy

import hf_models as hf
import pytest
from hf_models import mask, right

import modernbert_fast as mf

pytestmark = pytest.mark.usefixtures("one_thread")

MLM = "ModernBertForMaskedLM"


@pytest.fixture
def stock():
    return hf.build("ModernBertModel", hf.tiny_config())


@pytest.fixture
def fast(stock):
    return mf.accelerate(copy.deepcopy(stock))


@pytest.fixture
def mlm():
    return hf.build(MLM, hf.tiny_config())


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
