"""accelerate() gives the outputs, losses and gradients of stock transformers, for every class, padding and config."""

import copy

import hf_models as hf
import pytest
import torch
import torch.nn.functional as F
import transformers

import modernbert_fast as mf

pytestmark = pytest.mark.usefixtures("one_thread")

OUTPUT_BOUND = 1e-5  # of the output's largest value
GRADIENT_BOUND = 1e-4  # of the tensor's largest gradient
LOSS_BOUND = 1e-5
HALF_BOUND = 1.1  # times the error of stock transformers in the same dtype

CASES = [
    *((architecture, {}) for architecture in hf.ARCHITECTURES),
    ("ModernBertForSequenceClassification", {"classifier_pooling": "mean"}),
    ("ModernBertForMultipleChoice", {"classifier_pooling": "mean"}),
]
NAMES = [name.removeprefix("ModernBert") + "".join(f"-{v}" for v in changes.values()) for name, changes in CASES]


def step(model, architecture, batch):
    """Output with labels where the class takes them, its rows, and the loss that is to be differentiated."""
    output = model(**batch.inputs(architecture), **batch.targets(architecture, model.config))
    rows = batch.rows(architecture, output) if not is_sparse(model, output) else output.logits
    loss = output.loss if getattr(output, "loss", None) is not None else batch.loss(architecture, rows, model.config)
    return rows, loss


def is_sparse(model, output):
    """Whether the logits are those of labelled tokens only."""
    return getattr(model, "sparse_prediction", False) and output.loss is not None


def assert_gradients(fast, stock):
    worst = hf.gradient_error(hf.gradients(fast), hf.gradients(stock))
    assert worst[0] <= GRADIENT_BOUND, worst
    return worst[0]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("architecture, changes", CASES, ids=NAMES)
def test_random_configs_in_fp32(architecture, changes, seed, record_property):
    config = hf.random_config(seed, **changes)
    stock = hf.build(architecture, config, seed)
    fast = mf.accelerate(copy.deepcopy(stock))
    for kind in hf.KINDS:
        batch = hf.batch(kind, seed)
        stock.zero_grad()
        fast.zero_grad()
        expected = batch.expected(stock, architecture)
        expected_loss = batch.loss(architecture, expected, stock.config)
        expected_loss.backward()
        actual, loss = step(fast, architecture, batch)
        loss.backward()
        if architecture == "ModernBertForMaskedLM":
            labels = batch.targets(architecture, config)["labels"]
            labels = labels[0] if kind == "packed" else labels[batch.mask]
            expected = expected[labels != -100] if config.sparse_prediction else expected
            assert torch.equal(actual.argmax(-1), expected.argmax(-1))
        error = hf.relative(actual, expected)
        assert error <= OUTPUT_BOUND, kind
        loss_error = hf.relative(loss, expected_loss)
        assert loss_error <= LOSS_BOUND, kind
        record_property(f"{kind}_output_error", error)
        record_property(f"{kind}_loss_error", loss_error)
        record_property(f"{kind}_gradient_error", assert_gradients(fast, stock))


@pytest.mark.parametrize("kind", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("architecture, changes", CASES[1:], ids=NAMES[1:])
def test_the_loss_is_that_of_transformers(architecture, changes, kind):
    """Where padding disturbs transformers itself, each text is run alone: spans, and cls under left padding."""
    batch = hf.batch(kind, 3)
    stock = hf.build(architecture, hf.tiny_config(num_labels=3, **changes))
    fast = mf.accelerate(copy.deepcopy(stock))
    inputs = {**batch.inputs(architecture), **batch.targets(architecture, stock.config)}
    with torch.no_grad():
        loss = fast(**inputs).loss
        if architecture == "ModernBertForQuestionAnswering" and kind != "holes":
            losses = []
            for b, text in enumerate(batch.texts):
                first = batch.mask[b].int().argmax()
                spans = {name: inputs[name][b : b + 1] - first for name in ("start_positions", "end_positions")}
                losses.append(stock(input_ids=text[None], **spans).loss)
            expected = torch.stack(losses).mean()
        elif architecture == "ModernBertForQuestionAnswering":
            expected = batch.loss(architecture, batch.expected(stock, architecture), stock.config)
        elif kind == "left" and architecture == "ModernBertForSequenceClassification" and not changes:
            expected = F.cross_entropy(hf.alone(stock, architecture, batch.texts), inputs["labels"])
        else:
            expected = stock(**inputs).loss
    assert hf.relative(loss, expected) <= LOSS_BOUND


def test_num_items_in_batch_divides_the_sum():
    batch, architecture = hf.batch("right", 4), "ModernBertForMaskedLM"
    stock = hf.build(architecture, hf.tiny_config())
    fast = mf.accelerate(copy.deepcopy(stock))
    inputs = {**batch.inputs(architecture), **batch.targets(architecture, stock.config)}
    for count in (7, torch.tensor(11)):
        expected = stock(**inputs, num_items_in_batch=count).loss
        assert hf.relative(fast(**inputs, num_items_in_batch=count).loss, expected) <= LOSS_BOUND


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_both_attention_implementations_of_transformers_agree(implementation):
    batch, architecture = hf.batch("holes", 5), "ModernBertModel"
    stock = hf.build(architecture, hf.tiny_config())
    fast = mf.accelerate(copy.deepcopy(stock))
    stock.set_attn_implementation(implementation)
    with torch.no_grad():
        expected = batch.expected(stock, architecture)
        actual = batch.rows(architecture, fast(**batch.inputs(architecture)))
    assert hf.relative(actual, expected) <= OUTPUT_BOUND


@pytest.mark.parametrize("S", [1, 2, 63, 64, 65, 129, 200, 515])
def test_lengths_around_the_window_and_the_tables(S):
    config = hf.tiny_config(local_attention=128, max_position_embeddings=1024)
    stock = hf.build("ModernBertModel", config)
    ids = torch.randint(hf.VOCAB, (2, S), generator=torch.Generator().manual_seed(S))
    with torch.no_grad():
        expected = stock(ids).last_hidden_state
        actual = mf.accelerate(stock)(ids).last_hidden_state
    assert hf.relative(actual, expected) <= OUTPUT_BOUND


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("architecture", ["ModernBertModel", "ModernBertForMaskedLM"])
def test_half_precision_is_as_close_to_fp32_as_transformers(architecture, dtype, record_property):
    """Errors of 8 models are pooled: root of the mean square, and the mean of each model's largest."""
    squares, largest = {"stock": 0.0, "fast": 0.0}, {"stock": 0.0, "fast": 0.0}
    for seed in range(8):
        changes = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 96}
        truth = hf.build(architecture, hf.tiny_config(**changes), seed)
        for parameter in truth.parameters():
            parameter.data = parameter.data.to(dtype).float()
        stock = copy.deepcopy(truth)
        for parameter in stock.parameters():  # as from_pretrained(dtype=...) does: the rotary buffers stay fp32
            parameter.data = parameter.data.to(dtype)
        fast = mf.accelerate(copy.deepcopy(stock))
        batch = hf.batch("right", seed)
        with torch.no_grad():
            expected = batch.expected(truth, architecture)
            scale = expected.square().mean().sqrt()
            for name, model in (("stock", stock), ("fast", fast)):
                rows = batch.rows(architecture, model(**batch.inputs(architecture)))
                assert rows.dtype == dtype
                error = (rows.float() - expected) / scale
                squares[name] += float(error.square().mean())
                largest[name] += float(error.abs().max())
    record_property("rms_ratio", (squares["fast"] / squares["stock"]) ** 0.5)
    record_property("max_ratio", largest["fast"] / largest["stock"])
    assert squares["fast"] ** 0.5 <= HALF_BOUND * squares["stock"] ** 0.5
    assert largest["fast"] <= HALF_BOUND * largest["stock"]


def test_half_precision_gradients_are_as_close_to_fp32_as_transformers(record_property):
    architecture = "ModernBertForMaskedLM"
    squares = {"stock": 0.0, "fast": 0.0}
    for seed in range(6):
        truth = hf.build(architecture, hf.tiny_config(), seed)
        for parameter in truth.parameters():
            parameter.data = parameter.data.bfloat16().float()
        stock = copy.deepcopy(truth)
        for parameter in stock.parameters():
            parameter.data = parameter.data.bfloat16()
        fast = mf.accelerate(copy.deepcopy(stock))
        batch = hf.batch("right", seed)
        for model in (truth, stock, fast):
            step(model, architecture, batch)[1].backward()
        for name, model in (("stock", stock), ("fast", fast)):
            for key, expected in hf.gradients(truth).items():
                error = hf.gradients(model)[key].float() - expected
                squares[name] += float(error.square().mean() / expected.square().mean())
    record_property("rms_ratio", (squares["fast"] / squares["stock"]) ** 0.5)
    assert squares["fast"] ** 0.5 <= HALF_BOUND * squares["stock"] ** 0.5


def test_dynamic_rope_runs_on_the_stock_path(caplog):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    config = hf.tiny_config(rope_parameters={"full_attention": rope, "sliding_attention": rope})
    stock = hf.build("ModernBertModel", config)
    batch = hf.batch("right")
    with torch.no_grad():
        expected = stock(**batch.inputs("ModernBertModel")).last_hidden_state
        fast = mf.accelerate(stock)
        assert torch.equal(fast(**batch.inputs("ModernBertModel")).last_hidden_state, expected)
    assert "dynamic" in caplog.text
    assert "dynamic" in str(mf.report(fast))


def test_version_under_test_is_supported():
    major, minor = map(int, transformers.__version__.split(".")[:2])
    assert (major, minor) >= (5, 17)
