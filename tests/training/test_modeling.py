"""ModernBertForPreTraining: packed and stock paths, losses of micro-batches, folders that other classes read."""

import copy

import hf_models as hf
import pytest
import torch
import torch.nn.functional as F
import transformers
from hf_models import MLM, PRETRAINING

import modernbert_fast as mf
from modernbert_fast.model import ModernBertWithHead
from modernbert_fast.training.modeling import ModernBertForPreTraining

pytestmark = pytest.mark.usefixtures("one_thread")

ORDER = torch.tensor([1, 0, -100, 1])
OF_ORDER = ("order_head.", "order_classifier.")


def tokens_of(batch):
    """Labels of tokens, (B, S) or flattened."""
    return batch.targets(MLM, hf.tiny_config())["labels"]


def given(batch, order=ORDER):
    return {**batch.inputs(PRETRAINING), "labels": tokens_of(batch), "sentence_order_label": order}


def losses_alone(model, batch, order=ORDER):
    """Both losses in plain torch, from each text run by itself on the stock path."""
    tokens, orders = [], []
    for text in batch.texts:
        out = model(input_ids=text[None], attention_mask=torch.ones(1, len(text), dtype=torch.int64))
        tokens.append(out.prediction_logits[0])
        orders.append(out.sop_logits)
    labels = tokens_of(batch)
    labels = labels[0] if batch.kind == "packed" else labels[batch.mask]
    return F.cross_entropy(torch.cat(tokens), labels), F.cross_entropy(torch.cat(orders), order)


@pytest.mark.parametrize("loss_only", [False, True])
@pytest.mark.parametrize("kind", ["none", "right", "left", "packed"])
def test_loss_and_gradients_are_those_of_each_text_alone(kind, loss_only):
    ways = 3 if kind in ("left", "packed") else 2
    stock = hf.build(PRETRAINING, hf.tiny_config(sentence_order_labels=ways, sparse_prediction=kind == "right"))
    fast = mf.accelerate(copy.deepcopy(stock), strict=True, loss_only=loss_only)
    batch = hf.batch(kind)
    expected = sum(losses_alone(stock, batch))
    expected.backward()
    actual = fast(**given(batch))
    actual.loss.backward()
    assert hf.relative(actual.loss, expected) <= 1e-5
    assert actual.sop_logits.shape == (4, ways)
    assert (actual.prediction_logits is None) == loss_only
    worst = hf.gradient_error(hf.gradients(fast), hf.gradients(stock))
    assert worst[0] <= 1e-4, worst


@pytest.mark.parametrize("kind", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_stock_path_gives_the_same(kind, sparse):
    stock = hf.build(PRETRAINING, hf.tiny_config(sparse_prediction=sparse))
    fast = mf.accelerate(copy.deepcopy(stock), strict=True)
    counts = {"num_items_in_batch": 31, "num_texts_in_batch": torch.tensor(9)}
    for more in ({}, {"num_items_in_batch": torch.tensor(31)}, counts):
        expected, actual = (model(**given(hf.batch(kind)), **more) for model in (stock, fast))
        for name in ("loss", "sop_logits"):
            assert hf.relative(actual[name], expected[name]) <= 1e-5
    bare = fast(**hf.batch(kind).inputs(PRETRAINING))
    assert bare.loss is None and bare.prediction_logits.shape == (4, 33, hf.VOCAB)


def test_flattened_texts_on_the_stock_path_have_a_row_each():
    stock = hf.build(PRETRAINING, hf.tiny_config())
    batch = hf.batch("packed")
    lengths = [len(text) for text in batch.texts]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    output = stock(**batch.inputs(PRETRAINING), position_ids=positions, output_hidden_states=True)
    first = output.hidden_states[-1][0, torch.tensor([0, *lengths[:-1]]).cumsum(0)]
    assert torch.equal(output.sop_logits, stock.order_classifier(stock.order_head(first)))


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("with_texts", [False, True])
def test_micro_batches_sum_to_their_step(accelerated, with_texts):
    """Two of 2 texts: 40 and 25 labels, 2 and 1 orders. Without num_texts_in_batch a mean of means, by labels."""
    model = hf.build(PRETRAINING, hf.tiny_config())
    model = mf.accelerate(model, strict=True, loss_only=True) if accelerated else model
    batch = hf.batch("none")
    whole = given(batch)
    whole["labels"] = torch.where(torch.arange(33) < torch.tensor([[30], [10], [5], [20]]), batch.ids, -100)
    halves = [{name: value[rows] for name, value in whole.items()} for rows in (slice(2), slice(2, 4))]
    tokens, order = F.cross_entropy, F.cross_entropy
    bare = model(input_ids=whole["input_ids"])
    expected = tokens(bare.prediction_logits.flatten(0, 1), whole["labels"].flatten())
    if with_texts:
        expected = expected + order(bare.sop_logits, ORDER)
    else:
        means = [order(bare.sop_logits[rows], ORDER[rows]) for rows in (slice(2), slice(2, 4))]
        expected = expected + (40 * means[0] + 25 * means[1]) / 65
    more = {"num_items_in_batch": 65, **({"num_texts_in_batch": 3} if with_texts else {})}
    assert hf.relative(sum(model(**half, **more).loss for half in halves), expected) <= 1e-5


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("counts", [{}, {"num_items_in_batch": 7}, {"num_items_in_batch": torch.tensor(0)}])
def test_nothing_masked_leaves_the_order(accelerated, counts):
    model = hf.build(PRETRAINING, hf.tiny_config())
    model = mf.accelerate(model, strict=True, loss_only=True) if accelerated else model
    batch = hf.batch("right")
    labels = torch.full_like(batch.ids, -100)
    loss = model(**batch.inputs(PRETRAINING), labels=labels, **counts).loss
    loss.backward(retain_graph=True)
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in hf.gradients(model).values())
    loss = model(**{**given(batch), "labels": labels}, num_texts_in_batch=3, **counts).loss
    loss.backward()
    assert hf.relative(loss, losses_alone(model, batch)[1]) <= 1e-5
    for name, parameter in model.named_parameters():  # each: DDP waits for all
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() != name.startswith(("head.", "decoder.")), name


def test_a_folder_is_that_of_the_masked_language_model(tmp_path):
    model = mf.accelerate(hf.build(PRETRAINING, hf.tiny_config(sentence_order_labels=3, tie_word_embeddings=False)))
    inputs = hf.batch("right").inputs(PRETRAINING)
    model.save_pretrained(tmp_path)
    expected = mf.restore(model)(**inputs)
    assert type(model) is ModernBertForPreTraining
    for kind in (transformers.ModernBertForMaskedLM, transformers.AutoModelForMaskedLM):
        other = kind.from_pretrained(tmp_path).eval()
        assert type(other) is transformers.ModernBertForMaskedLM
        assert torch.equal(other(**inputs).logits, expected.prediction_logits)
    again = ModernBertForPreTraining.from_pretrained(tmp_path).eval()
    assert again.config.sentence_order_labels == 3
    assert torch.equal(again(**inputs).sop_logits, expected.sop_logits)
    encoder = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(encoder(**inputs)[0], model.model(**inputs)[0])
    ours = ModernBertWithHead.from_pretrained(tmp_path, MLM)
    assert torch.equal(ours.decoder.weight, model.decoder.weight)
    assert mf.ModernBert.from_pretrained(tmp_path).state_dict().keys() == encoder.state_dict().keys()


def test_a_masked_language_model_gets_new_heads_of_order(tmp_path):
    stock = hf.build(MLM, hf.tiny_config(hidden_size=256, vocab_size=5))
    stock.save_pretrained(tmp_path)
    model = ModernBertForPreTraining.from_pretrained(tmp_path)
    for name, tensor in stock.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert model.config.sentence_order_labels == 2
    fresh = ModernBertForPreTraining(stock.config)
    for made in (model, fresh):
        deviations = [part.weight.std().item() for part in (made.order_classifier, made.order_head.dense)]
        usual = transformers.ModernBertForSequenceClassification(stock.config)
        expected = [part.weight.std().item() for part in (usual.classifier, usual.head.dense)]
        assert deviations == pytest.approx(expected, rel=0.1)
        assert not made.order_classifier.bias.any() and (made.order_head.norm.weight == 1).all()


@pytest.mark.parametrize("part", ["order_head", "order_head.dense", "order_classifier", "drop"])
def test_hooks_on_the_heads_of_order_are_called(part):
    fast = mf.accelerate(hf.build(PRETRAINING, hf.tiny_config()), strict=True)
    inputs = hf.batch("left").inputs(PRETRAINING)
    before = fast(**inputs)
    fast.get_submodule(part).register_forward_hook(lambda module, args, output: 2 * output)
    after = fast(**inputs)
    assert not torch.allclose(after.sop_logits, before.sop_logits)
    assert torch.equal(after.prediction_logits, before.prediction_logits)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant):
    fast = mf.accelerate(hf.build(PRETRAINING, hf.tiny_config()), strict=True, loss_only=True).train()
    results = []
    for checkpointed in (False, True):
        if checkpointed:
            fast.gradient_checkpointing_enable({"use_reentrant": reentrant})
            fast.enable_input_require_grads()
        fast.zero_grad()
        fast(**given(hf.batch("packed"))).loss.backward()
        results.append({name: gradient.clone() for name, gradient in hf.gradients(fast).items()})
    worst = hf.gradient_error(*results)
    assert worst[0] <= 1e-5, worst


def test_the_trainer_finds_the_labels():
    """By the names of the arguments of forward(), which accelerate() keeps."""
    from transformers.utils.generic import find_labels

    for model in (stock := hf.build(PRETRAINING, hf.tiny_config()), mf.accelerate(copy.deepcopy(stock))):
        assert find_labels(type(model)) == ["labels", "sentence_order_label"]


def test_a_config_of_four_ways_raises():
    with pytest.raises(ValueError, match="sentence_order_labels is 4"):
        ModernBertForPreTraining(hf.tiny_config(sentence_order_labels=4))
