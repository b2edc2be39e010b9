"""When a layer runs as one call, and when its ops run one by one because something watches or changes a part of it."""

import contextlib
import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import modernbert_fast as mf
from modernbert_fast import dispatch, library, one_call, ops

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(library.isa() == "none", reason="the C++ ops were not built"),
]

LAYERS = 2
BATCH = mf.PackedBatch.from_lists([[5, 6, 7], [9], list(range(20, 60))])


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.fixture
def model():
    return build()


def build():
    config = mf.EncoderConfig.preset("base").to_dict() | {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "mlp_dropout": 0.5,
        "layer_types": ["full_attention", "sliding_attention"],
    }
    tokens = {f"{name}_token_id": 0 for name in ("cls", "bos", "sep", "eos", "pad")}
    return mf.ModernBert(mf.EncoderConfig.from_dict(config | tokens)).eval()


@pytest.fixture
def calls(monkeypatch):
    """An entry for every layer that ran as one call."""
    found, right = [], ops.encoder_layer
    monkeypatch.setattr(ops, "encoder_layer", lambda *args: found.append(1) or right(*args))
    return found


def half_of(model, kind, name):
    for module in model.modules():
        if isinstance(module, kind):
            parameter = getattr(module, name)
            parameter.data = parameter.data.to(torch.bfloat16)


def replace(model, path, kind):
    parent, _, name = path.rpartition(".")
    parent = model.get_submodule(parent)
    new = kind(*getattr(parent, name).weight.T.shape, bias=False)
    new.load_state_dict(getattr(parent, name).state_dict())
    setattr(parent, name, new)


PARTS = ("attn_norm", "attn.Wqkv", "attn.out_drop", "attn.Wo", "mlp_norm", "mlp.Wi", "mlp.act", "mlp.drop", "mlp.Wo")


@pytest.mark.parametrize("forced", [None, "cpu"])
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_taken(model, calls, forced, grad):
    with grad(), dispatch.use_backend(forced):
        model(BATCH)
    assert len(calls) == LAYERS


@pytest.mark.parametrize("part", PARTS)
def test_a_hook_on_a_part_runs(model, calls, part):
    seen = []
    for layer in model.layers:
        layer.get_submodule(part).register_forward_hook(lambda *args: seen.append(1))
    with torch.no_grad():
        model(BATCH)
    assert not calls
    assert len(seen) == LAYERS or part == "mlp.act" and seen


@pytest.mark.parametrize("part", PARTS)
def test_a_hook_that_comes_later_runs(model, calls, part):
    """What was found of the model at one call does not hold for the next."""
    seen = []
    with torch.no_grad():
        model(BATCH)
        model.layers[1].get_submodule(part).register_forward_hook(lambda *args: seen.append(1))
        model(BATCH)
    assert seen and len(calls) == 2 * LAYERS - 1


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.layers[1].mlp_norm, "eps", 1.0),
        lambda model: setattr(model.layers[1].mlp.Wi, "weight", nn.Parameter(torch.ones(96, 32))),
        lambda model: model.layers[1].attn_norm.weight.data.mul_(2),
        lambda model: setattr(model.layers[1].attn.Wo, "weight", nn.Parameter(model.layers[1].attn.Wo.weight.data.t())),
        lambda model: replace(model, "layers.1.mlp.Wi", Doubled),
        lambda model: model.layers[1].config.__dict__.update(hidden_activation="relu"),
        lambda model: model.double(),
    ],
    ids=["eps", "weight", "in place", "same memory", "module", "activation", "dtype"],
)
def test_a_change_between_calls_is_seen(model, change):
    with torch.no_grad():
        model(BATCH)
        change(model)
        again = model(BATCH)
        one_call._known.pop(model, None)  # what was found anew
        assert torch.equal(again, model(BATCH))


def test_a_model_that_is_gone_is_forgotten():
    def use():
        model = build()
        with torch.no_grad():
            model(BATCH)
        assert model in one_call._known and copy.deepcopy(model) not in one_call._known
        return weakref.ref(model), weakref.ref(model.layers[0])

    gone = use()
    gc.collect()
    assert [there() for there in gone] == [None, None]


@pytest.mark.parametrize("op", ["layer_norm", "attention", "linear", "geglu"])
def test_a_forced_part_runs(model, calls, op):
    with torch.no_grad(), dispatch.use_backend("reference", op):
        model(BATCH)
    assert not calls


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.train(),  # dropout
        lambda model: replace(model, "layers.0.mlp.Wi", Doubled),
        lambda model: model.layers[0].config.__dict__.update(hidden_activation="gelu_new"),
    ],
    ids=["dropout", "subclass", "activation"],
)
def test_a_changed_part_runs(model, calls, change):
    with torch.no_grad():
        change(model)
        model(BATCH)
    assert len(calls) < LAYERS


@pytest.mark.parametrize(
    "state",
    [contextlib.nullcontext, torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["grad", "enable_grad", "autocast"],
)
def test_not_taken_where_more_is_asked(model, calls, state):
    with torch.set_grad_enabled(state is contextlib.nullcontext), state():
        model(BATCH)
    assert not calls


def test_norms_of_two_dtypes_are_left_to_the_reference(model, calls):
    model.layers[1].mlp_norm.bias = nn.Parameter(torch.zeros(32, dtype=torch.bfloat16))
    with torch.no_grad():
        model(BATCH)
    assert len(calls) == LAYERS - 1
