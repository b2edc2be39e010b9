"""Hooks on any module of an accelerated model fire, and what they return is used."""

import copy

import hf_models as hf
import pytest
import torch
from hf_models import MLM, mask, right

import modernbert_fast as mf

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("kind", ["forward_pre_hook", "full_backward_pre_hook", "full_backward_hook"])
def test_hooks_on_layers_see_the_whole_stream(stock, fast, kind):
    """One tensor of it, and not what a layer adds beside what was there before."""
    seen = {}
    for name, model in (("stock", stock), ("fast", fast)):
        seen[name] = []
        look = lambda module, *groups, to=seen[name]: to.extend(groups)  # noqa: E731
        getattr(model.layers[1], f"register_{kind}")(look)
        model(**right()).last_hidden_state[mask()].square().mean().backward()
    assert len(seen["fast"]) == (2 if kind == "full_backward_hook" else 1)
    for actual, expected in zip(seen["fast"], seen["stock"], strict=True):
        assert len(actual) == 1
        assert hf.relative(actual[0], expected[0][mask()]) <= 1e-4


def test_a_stock_call_leaves_later_calls_as_fast_as_they_were(fast, monkeypatch):
    """The hooks by which transformers records hidden states stay on the layers, and only look."""
    deferred, run = [], mf.encoder.layer
    monkeypatch.setattr(mf.encoder, "layer", lambda *args: deferred.append(args[-1]) or run(*args))
    fast.set_attn_implementation("eager")
    for asked in ({}, {"output_attentions": True, "output_hidden_states": True}, {}):
        fast(**right(), **asked)
    assert deferred == [True] * 6


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


@pytest.mark.parametrize("name", ["attn", "mlp"])
def test_blocks_replaced_after_accelerate_are_called(stock, fast, name):
    for model in (stock, fast):
        block = model.layers[1].get_submodule(name)
        kind = type(block)
        theirs = lambda self, *args, kind=kind, **kw: halve_first(self, args, kind.forward(self, *args, **kw))  # noqa: E731
        block.__class__ = type("Theirs", (kind,), {"forward": theirs})
    assert torch.equal(fast(**right()).last_hidden_state, stock(**right()).last_hidden_state)


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


@pytest.mark.parametrize("architecture", hf.EVERY[1:])
def test_hooks_on_the_encoder_of_a_head_see_what_transformers_shows(architecture):
    batch = hf.batch("right")
    stock = hf.build(architecture, hf.tiny_config())
    fast = mf.accelerate(copy.deepcopy(stock))
    seen = []

    def halve(module, args, output):
        seen.append((type(output), output.last_hidden_state.shape))
        output.last_hidden_state = output.last_hidden_state * 0.5
        return output

    for model in (stock, fast):
        model.model.register_forward_hook(halve)
    expected, actual = (batch.rows(architecture, model(**batch.inputs(architecture))) for model in (stock, fast))
    assert seen[0] == seen[1]
    assert hf.relative(actual, expected) <= 1e-5


def test_noise_on_embeddings(fast):
    """NEFTune's hook takes its scale from the sizes of (B, S, C)."""
    neftune = pytest.importorskip("transformers.integrations.neftune")
    expected = fast(**right()).last_hidden_state
    table = fast.get_input_embeddings()
    table.neftune_noise_alpha = 5.0
    table.register_forward_hook(neftune.neftune_post_forward_hook)
    noise = []
    table.register_forward_hook(lambda m, args, output: noise.append((output - m.weight[args[0]]).abs().max()))
    assert hf.relative(fast(**right()).last_hidden_state, expected) <= 1e-6
    noisy = fast.train()(**right()).last_hidden_state
    assert noisy.isfinite().all() and hf.relative(noisy, expected) > 1e-3
    assert noise[0] == 0 and 0.95 < noise[1] / (5.0 * (33 * 32) ** -0.5) < 1.0001


def test_global_hooks_see_every_module(stock, fast):
    seen = {}
    for name, model in (("stock", stock), ("fast", fast)):
        seen[name] = []
        hook = lambda module, args, output, to=seen[name]: to.append(type(module).__name__)  # noqa: E731
        handle = torch.nn.modules.module.register_module_forward_hook(hook)
        try:
            model(**right())
        finally:
            handle.remove()
    assert seen["fast"].count("Linear") == 4 * 3
    assert seen["fast"] == seen["stock"]
