"""Flattening collators: the same loss, gradients and predictions as padding gives, under a plain Trainer too."""

import copy

import hf_models as hf
import numpy as np
import pytest
import torch

import modernbert_fast as mf

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from modernbert_fast.training import collators  # noqa: E402
from modernbert_fast.training.finetuning import FineTuner, Settings, arguments  # noqa: E402
from modernbert_fast.training.kinds import KINDS  # noqa: E402
from modernbert_fast.training.tasks import ACCURACY, Task  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (9, 17, 1, 5, 12, 3)
SEQUENCE = "ModernBertForSequenceClassification"
TOKENS = "ModernBertForTokenClassification"
SPANS = "ModernBertForQuestionAnswering"
CHOICES = "ModernBertForMultipleChoice"
draw = np.random.default_rng(0)
IDS = [draw.integers(3, hf.VOCAB, length).tolist() for length in LENGTHS]


def features(kind):
    """Features of a kind, as tokenizers give them: lists and plain numbers."""
    if kind == "integers":
        return [{"input_ids": text, "label": number % 3} for number, text in enumerate(IDS)]
    if kind == "floats":
        return [{"input_ids": text, "labels": number / 3} for number, text in enumerate(IDS)]
    if kind == "tokens":
        return [{"input_ids": t, "labels": [-100, *(i % 3 for i in t[1:])]} for t in IDS if len(t) > 1]
    if kind == "spans":
        return [{"input_ids": t, "start_positions": len(t) // 3, "end_positions": len(t) - 1} for t in IDS]
    return [{"input_ids": IDS[place : place + 3], "label": place % 2} for place in (0, 3)]


CASES = {  # architecture, collator, config
    "integers": (SEQUENCE, collators.collate_texts, {"num_labels": 3}),
    "floats": (SEQUENCE, collators.collate_texts, {"num_labels": 1}),
    "tokens": (TOKENS, collators.collate_tokens, {"num_labels": 3}),
    "spans": (SPANS, collators.collate_spans, {}),
    "choices": (CHOICES, collators.collate_choices, {}),
}


def padded(kind):
    """The same features as a padded batch."""
    rows = features(kind)
    texts = [text for row in rows for text in (row["input_ids"] if kind == "choices" else [row["input_ids"]])]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([[len(text)] for text in texts])
    batch = {"input_ids": ids, "attention_mask": mask.long()}
    if kind == "choices":
        batch = {name: grid.view(2, 3, -1) for name, grid in batch.items()}
    if kind == "spans":
        spans = ("start_positions", "end_positions")
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in spans}
    labels = [torch.tensor(row.get("label", row.get("labels"))) for row in rows]
    if kind == "tokens":
        return batch | {"labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)}
    return batch | {"labels": torch.stack(labels)}


def model_of(kind):
    architecture, _, config = CASES[kind]
    return mf.accelerate(hf.build(architecture, hf.tiny_config(**config)), strict=True)


@pytest.mark.parametrize("kind", CASES)
def test_loss_and_gradients_are_those_of_padding(kind):
    model = model_of(kind)
    results = []
    for batch in (CASES[kind][1](features(kind)), padded(kind)):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        results.append((loss.detach(), hf.gradients(model)))
    assert hf.relative(results[0][0], results[1][0]) <= 1e-6
    error, name = hf.gradient_error(results[0][1], results[1][1])
    assert error <= 1e-4, name


@pytest.mark.parametrize("kind", CASES)
def test_a_plain_trainer_trains_and_evaluates(kind, tmp_path):
    """Its losses, predictions and labels are those of the model itself, whatever the size of a batch."""
    model, (_, collate, _) = model_of(kind), CASES[kind]
    seen = {}

    def metrics(prediction):
        seen["predictions"], seen["labels"] = prediction.predictions, prediction.label_ids
        return {}

    args = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, per_device_eval_batch_size=2, max_steps=2, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, learning_rate=1e-3,
    )  # fmt: skip
    rows = features(kind)
    trainer = transformers.Trainer(model, args, collate, rows, rows, compute_metrics=metrics)
    before = copy.deepcopy(model)
    assert np.isfinite(trainer.train().training_loss)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    model.eval()
    with torch.no_grad():
        expected = model(**padded(kind))
    if kind in ("integers", "floats", "choices"):
        assert np.allclose(seen["predictions"], expected.logits, atol=1e-5)
        assert np.allclose(seen["labels"], padded(kind)["labels"])
    elif kind == "tokens":  # a row a batch; what counts is where the labels are
        kept, right = seen["labels"] != -100, padded(kind)["labels"] != -100
        assert np.array_equal(seen["labels"][kept], padded(kind)["labels"][right])
        assert np.allclose(seen["predictions"][kept], expected.logits[right], atol=1e-5)


@pytest.mark.parametrize("kind", ["tokens", "spans"])
def test_our_trainer_predicts_a_row_a_text(kind, tmp_path):
    model, rows = model_of(kind), features(kind)
    task = Task("task", kind, ("a", "b", "c"), ACCURACY)
    trainer = FineTuner(task, model, None, arguments(tmp_path, Settings(cpu=True), 2))
    given = trainer.predict(rows).predictions
    with torch.no_grad():
        expected = model(**padded(kind))
    lengths = [len(row["input_ids"]) for row in rows]
    grids = (
        zip(given, (expected.start_logits, expected.end_logits), strict=True)
        if kind == "spans"
        else [(given, expected.logits)]
    )
    for actual, right in grids:
        assert len(actual) == len(rows)
        for one, other, length in zip(actual, right, lengths, strict=True):
            assert np.allclose(one[:length], other[:length], atol=1e-5) and (one[length:] == -100).all()


@pytest.mark.parametrize("kind", ["texts", "tokens"])
def test_accumulation_changes_no_gradient(kind, tmp_path):
    """Three micro-batches a step give the mean of their losses, and not the sum."""
    case = {"texts": "integers", "tokens": "tokens"}[kind]
    ids = draw.integers(3, hf.VOCAB, (6, 7)).tolist()
    rows = [{"input_ids": text, "labels": [0, 1, 2, 1, 0, 1, 2] if kind == "tokens" else text[0] % 3} for text in ids]
    norms = []
    for accumulate in (1, 3):
        args = arguments(
            tmp_path, Settings(cpu=True), 6, per_device_train_batch_size=6 // accumulate, max_steps=1,
            gradient_accumulation_steps=accumulate, save_strategy="no", logging_steps=1, max_grad_norm=1e9,
        )  # fmt: skip
        trainer = FineTuner(Task("task", kind, ("a", "b", "c"), ACCURACY), model_of(case), None, args)
        trainer.train_dataset = rows
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_upstream_breaks_on_integer_labels():
    """Why these collators are here: DataCollatorWithFlattening takes labels for lists of tokens."""
    with pytest.raises(TypeError):
        transformers.DataCollatorWithFlattening()([{"input_ids": [1, 2], "labels": 1}])


def test_labels_have_the_type_that_the_loss_takes():
    for given, dtype in ((1, torch.int64), (np.int32(1), torch.int64), (True, torch.int64), (0.5, torch.float32)):
        labels = collators.collate_texts([{"input_ids": [1, 2], "label": given}])["labels"]
        assert labels.dtype == dtype and labels.shape == (1,)
    assert collators.collate_texts([{"input_ids": [1], "labels": [0.0, 1.0]}])["labels"].shape == (1, 2)
    assert "labels" not in collators.collate_texts([{"input_ids": [1, 2]}])


def test_bad_features_are_named():
    with pytest.raises(ValueError, match="text 1 of the batch has 1 labels for 2 tokens"):
        collators.collate_tokens([{"input_ids": [1], "labels": [0]}, {"input_ids": [1, 2], "labels": [0]}])
    with pytest.raises(ValueError, match=r"have \[1, 2\] choices"):
        collators.collate_choices([{"input_ids": [[1]]}, {"input_ids": [[1], [2]]}])
    for collate in {kind.collate for kind in KINDS.values()}:
        with pytest.raises(ValueError):
            collate([])
