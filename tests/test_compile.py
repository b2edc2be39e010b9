"""torch.compile of an accelerated model, and of the encoder alone without a graph break."""

import copy
import functools

import hf_models as hf
import pytest
import torch

import modernbert_fast as mf
from modernbert_fast import encoder

pytestmark = pytest.mark.usefixtures("one_thread")

MLM = "ModernBertForMaskedLM"


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("architecture", [MLM, "ModernBertForSequenceClassification"])
def test_a_compiled_model_equals_the_eager_one(architecture):
    fast = mf.accelerate(hf.build(architecture, hf.tiny_config(num_hidden_layers=2)))
    compiled = torch.compile(copy.deepcopy(fast), backend="aot_eager")
    for kind, S in (("right", 33), ("none", 20), ("left", 40)):
        batch = hf.batch(kind, S=S)
        given = {**batch.inputs(architecture), **batch.targets(architecture, fast.config)}
        outputs = []
        for model in (fast, compiled):
            model.zero_grad()
            outputs.append(model(**given))
            outputs[-1].loss.backward()
        assert hf.relative(outputs[1].logits, outputs[0].logits) <= 1e-5
        for name, gradient in hf.gradients(fast).items():
            assert hf.relative(hf.gradients(compiled)[f"_orig_mod.{name}"], gradient, 1e-6) <= 1e-4, name


def packed_inputs(config, lengths):
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(hf.VOCAB, (n,), generator=generator).tolist() for n in lengths]
    batch = mf.PackedBatch.from_lists(texts)
    return encoder.prepare(config, batch, torch.float32), batch.tokens


def graphs_of(model, backend="aot_eager"):
    """encode() of `model`, compiled in one graph, and a list with an entry for every compilation."""
    count = []
    compile_graph = torch._dynamo.lookup_backend(backend)

    def counting(graph, inputs, **kwargs):
        count.append(graph)
        return compile_graph(graph, inputs, **kwargs)

    return torch.compile(functools.partial(encoder.encode, model), backend=counting, fullgraph=True), count


@pytest.mark.parametrize("source", ["transformers", "ours"])
def test_encode_is_one_graph(source):
    stock = hf.build("ModernBertModel", hf.tiny_config(num_hidden_layers=2))
    config = mf.EncoderConfig.from_hf(stock.config)
    if source == "transformers":
        model = mf.accelerate(stock)
    else:
        model = mf.ModernBert(config).eval()
        model.load_state_dict(stock.state_dict())
    compiled, _ = graphs_of(model)
    packed, tokens = packed_inputs(config, (5, 12, 1))
    expected = encoder.encode(model, packed, tokens)
    expected.square().mean().backward()
    grads = {name: gradient.clone() for name, gradient in hf.gradients(model).items()}
    model.zero_grad()
    actual = compiled(packed, tokens)
    actual.square().mean().backward()
    assert hf.relative(actual, expected) <= 1e-5
    for name, gradient in grads.items():
        assert hf.relative(hf.gradients(model)[name], gradient) <= 1e-4, name


def test_encode_recompiles_twice_at_most_over_many_shapes():
    model = mf.accelerate(hf.build("ModernBertModel", hf.tiny_config()))
    config = mf.EncoderConfig.from_hf(model.config)
    compiled, count = graphs_of(model, "eager")
    with torch.no_grad():
        for n in range(2, 14):
            packed, tokens = packed_inputs(config, range(3, 3 + n))
            assert hf.relative(compiled(packed, tokens), encoder.encode(model, packed, tokens)) <= 1e-5
    assert len(count) - 1 <= 2  # recompilations: with dynamic sizes; once more for a size of one or two


@pytest.mark.slow
def test_inductor_compiles_the_encoder():
    model = mf.accelerate(hf.build("ModernBertModel", hf.tiny_config(num_hidden_layers=2)))
    config = mf.EncoderConfig.from_hf(model.config)
    compiled, _ = graphs_of(model, "inductor")
    packed, tokens = packed_inputs(config, (5, 12, 1))
    with torch.no_grad():
        assert hf.relative(compiled(packed, tokens), encoder.encode(model, packed, tokens)) <= 1e-5


def test_accelerating_a_compiled_model_is_refused():
    with pytest.raises(ValueError, match="before torch.compile"):
        mf.accelerate(torch.compile(hf.build("ModernBertModel", hf.tiny_config())))
