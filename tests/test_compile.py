"""torch.compile of an accelerated model, and of the encoder alone without a graph break."""

import contextlib
import copy
import functools

import hf_models as hf
import pytest
import torch

import modernbert_fast as mf
from modernbert_fast import encoder, library

pytestmark = pytest.mark.usefixtures("one_thread")

MLM = "ModernBertForMaskedLM"
LAYERS = ["full_attention", "sliding_attention"]


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


def shapes(count):
    """Lengths of the texts of so many batches, one to five texts of two tokens or more."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(2, 20, (1 + n % 5,), generator=generator).tolist() for n in range(count)]


@pytest.mark.parametrize("triton, grad", [(False, False), (False, True), (True, False)])
def test_encode_recompiles_twice_at_most_over_many_shapes(triton, grad):
    """Once with dynamic sizes, and once more for a schedule of a single tile; never with a graph break."""
    if triton and not library.interprets_triton():
        pytest.skip("needs Triton's interpreter")
    config = hf.tiny_config(num_hidden_layers=2, num_attention_heads=1, layer_types=LAYERS)
    model = mf.accelerate(hf.build("ModernBertModel", config))
    config = mf.EncoderConfig.from_hf(model.config)
    compiled, count = graphs_of(model, "eager")
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(grad))
        if triton:
            hf.force_triton(stack)
        for n, lengths in enumerate(shapes(50)):
            packed, tokens = packed_inputs(config, lengths)
            actual = compiled(packed, tokens)
            if n % 10 < (1 if triton else 10):
                assert hf.relative(actual, encoder.encode(model, packed, tokens)) <= 1e-5
    assert len(count) - 1 <= 2


def test_the_model_recompiles_twice_at_most_over_many_padded_shapes():
    """Compiled with dynamic sizes: one text, several of one length, and several padded ones have a graph each."""
    model = mf.accelerate(hf.build("ModernBertModel", hf.tiny_config(num_hidden_layers=2)))
    encoders = []

    def counting(graph, inputs):
        encoders.extend(
            node for node in graph.graph.nodes if str(node.target).endswith("layer_norm_embed_forward.default")
        )
        return graph

    compiled = torch.compile(model, backend=counting, dynamic=True)
    with torch.no_grad():
        for n, lengths in enumerate(shapes(50)):
            mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
            mask |= n % 7 == 3
            ids = torch.randint(hf.VOCAB, mask.shape)
            outputs = [each(ids, attention_mask=mask).last_hidden_state for each in (compiled, model)]
            assert hf.relative(*outputs) <= 1e-5
    assert 1 <= len(encoders) <= 3


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
