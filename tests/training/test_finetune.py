"""modernbert-fast finetune and evaluate on files of one's own: learned, saved, loaded by transformers, predicted."""

import csv
import dataclasses
import json
import re

import numpy as np
import planted
import pytest
import torch
from safetensors.torch import load_file

from modernbert_fast import cli
from modernbert_fast.training import custom, kinds
from modernbert_fast.training.tasks import Example

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

from modernbert_fast.training.finetuning import load_model, load_tokenizer  # noqa: E402

pytestmark = pytest.mark.usefixtures("keep_threads")

CPU = ("--device", "cpu", "--threads", "1")
QUICK = ("--learning-rate", "2e-3", "--epochs", "10", "--batch-size", "16", "--evaluations", "4", "--patience", "9")
TAGS = ("B-X", "I-X")


def classification(words):
    label, marker = words.label(3)
    return {"text": f'{words.text(marker)},\n"{words.text()}', "label": ("bad", "fair", "good")[label]}


def pairs(words):
    label, marker = words.label(5)
    return {"text1": words.text(marker), "text2": words.text(), "label": label / 2}


def tokens(words):
    """The word after a marker is an entity, and so is the marker."""
    filler = words.text().split()
    place = words.draw.randrange(len(filler))
    texts = [*filler[:place], "class", "Python", *filler[place:]]
    return {"tokens": texts, "tags": ["O"] * place + list(TAGS) + ["O"] * (len(filler) - place)}


def qa(words):
    """The answer is what follows "return"; a context without it has none."""
    before, after = words.text(), words.text()
    if words.draw.random() < 0.3:
        return {"question": words.text(low=1, high=2), "context": f"{before} {after}", "answer": None}
    answer = words.draw.choice(("import", "class method", "string"))
    context = f"{before} return {answer} {after}"
    return {"question": words.text(low=1, high=2), "context": context, "answer": answer, "start": len(before) + 8}


FORMS = {  # row, suffix, options, class of transformers
    "classification": (classification, ".csv", (), "AutoModelForSequenceClassification"),
    "pairs": (pairs, ".jsonl", ("--regression", "--epochs", "20"), "AutoModelForSequenceClassification"),
    "tokens": (tokens, ".jsonl", (), "AutoModelForTokenClassification"),
    "qa": (qa, ".jsonl", ("--epochs", "20"), "AutoModelForQuestionAnswering"),
}


def write(path, rows):
    if path.suffix == ".jsonl":
        return planted.write_jsonl(path, rows)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def files(folder, form, row=None):
    """Training and evaluation files of a form, and the rows of the second."""
    build, suffix = FORMS[form][:2]
    rows = {
        split: [(row or build)(words) for _ in words.rows]
        for split in ("train", "dev")
        for words in [planted.Words(split)]
    }
    for split in rows:
        write(folder / f"{split}{suffix}", rows[split])
    return str(folder / f"train{suffix}"), str(folder / f"dev{suffix}"), rows["dev"]


def tune(form, checkpoint, folder, *options):
    train, dev, rows = files(folder, form)
    given = ["--model", str(checkpoint), "--output", str(folder / "out"), "--train", train, "--eval", dev]
    assert cli.main(["finetune", form, *given, *QUICK, *CPU, *options]) == 0
    return dev, rows


@pytest.mark.parametrize("form", FORMS)
def test_learned_saved_loaded_predicted(form, tiny_checkpoint, tmp_path, capsys):
    *_, options, architecture = FORMS[form]
    dev, rows = tune(form, tiny_checkpoint, tmp_path, *options)
    metrics = json.loads((tmp_path / "out" / "finetune.json").read_text())["metrics"]
    assert min(metrics.values()) > 0.95, metrics
    assert not (tmp_path / "out" / ".training").exists()

    model, loading = getattr(transformers, architecture).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    assert type(model).__module__ == "transformers.models.modernbert.modeling_modernbert"
    capsys.readouterr()
    output = tmp_path / "predictions.jsonl"
    assert cli.main(["evaluate", str(tmp_path / "out"), dev, "--output", str(output), "--batch-size", "5", *CPU]) == 0
    shown = capsys.readouterr().out
    assert "64 examples" in shown and all(f"{name} {100 * value:.1f}" in shown for name, value in metrics.items())
    predicted = [json.loads(line)["prediction"] for line in output.read_text().splitlines()]
    if form == "qa":
        assert cli.main(["evaluate", str(tmp_path / "out"), dev, "--max-length", "16", *CPU]) == 0
        found = re.search(r"exact (\d+\.\d), f1 (\d+\.\d)", capsys.readouterr().out)
        assert min(map(float, found.groups())) > 80  # of contexts in windows, though trained on whole ones
    if form == "pairs":
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        inputs = [tokenizer(row["text1"], row["text2"], return_tensors="pt") for row in rows]
        stock = [model(**one).logits.item() for one in inputs]
        assert predicted == pytest.approx(stock, abs=1e-4)
    else:
        label = custom.LAYOUTS[form].label
        right = sum(one == (row[label] or "") for one, row in zip(predicted, rows, strict=True))
        assert right > 0.95 * len(rows)


def test_answers_in_long_contexts_lie_in_windows(tiny_checkpoint, tmp_path):
    """Sure logits at the windows' spans decode to the answers; a window without its answer points at its start."""
    path, _, _ = files(tmp_path, "qa")
    examples = custom.read(custom.LAYOUTS["qa"], path, None)
    kind = kinds.KINDS["spans"]
    features = kind.encode(load_tokenizer(tiny_checkpoint), examples, ("",), 16)
    assert len(features) > 1.5 * len(examples) and max(len(feature["input_ids"]) for feature in features) == 16
    spans = [[feature[f"{end}_positions"] for feature in features] for end in ("start", "end")]
    for feature, first in zip(features, spans[0], strict=True):
        assert first == 0 or feature["inside"][first]
    given = [9.0 * np.eye(16)[places] for places in spans]
    given = [scores + (np.array(spans[0]) > 0)[:, None] for scores in given]  # an answer beats the windows without it
    assert kind.decode(examples, features, given, ("",)) == [
        example.gold[0] if example.gold else "" for example in examples
    ]
    assert all(kind.decode(examples, features, given, ()))  # where "" is no answer, there always is one


def test_a_question_that_leaves_no_room_is_named(tiny_checkpoint):
    """With room for windows that overlap, or a context that needs none, it is answered."""
    tokenizer, encode = load_tokenizer(tiny_checkpoint), kinds.KINDS["spans"].encode
    size = len(tokenizer("is if or", add_special_tokens=False)["input_ids"])
    fine, short = Example(("is", "a " * 99)), Example(("is if or", "a"))
    assert len(encode(tokenizer, [short], (), size + 4)) == 1
    least = next(limit for limit in range(99) if limit - 3 - size > limit // 4)
    assert len(encode(tokenizer, [Example(("is if or", fine.texts[1]))], (), least)) > 9
    for limit in (least - 1, size + 4):
        with pytest.raises(ValueError, match=f"example 2: of {limit} tokens its question takes {size}, .* 'is if or'"):
            encode(tokenizer, [short, Example(("is if or", fine.texts[1]))], (), limit)
    with pytest.raises(ValueError, match="example 1"):
        encode(tokenizer, [short], (), size + 1)


def test_pickled_weights_are_refused(tiny_checkpoint, tmp_path):
    """A folder that has no others; nothing in it is unpickled."""
    task = custom.make_task(custom.LAYOUTS["classification"], ("a", "b"))
    for path in tiny_checkpoint.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(tiny_checkpoint / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="no file named model.safetensors"):
        load_model(task, tmp_path)
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(ValueError, match="adapter_model.bin is pickled"):
        load_model(task, tmp_path)


def test_adapters_are_merged(tiny_checkpoint, tmp_path):
    pytest.importorskip("peft")
    options = "--epochs 1 --batch-size 96 --evaluations 1 --lora 8 --dtype bfloat16 --accumulate 2"
    tune("classification", tiny_checkpoint, tmp_path, *options.split())
    model, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(loading.values()) and model.dtype.itemsize == 4
    start = transformers.AutoModel.from_pretrained(tiny_checkpoint)
    weights, before = model.model.state_dict(), start.state_dict()
    changed = {name.split(".")[-2] for name in before if not weights[name].equal(before[name])}
    assert changed == {"Wqkv", "Wo", "Wi"}  # which have adapters


def test_a_second_tuning_keeps_the_classifier_of_the_same_labels(tiny_checkpoint, tmp_path):
    """and draws another for other labels, though of as many, and for another architecture."""
    tune("classification", tiny_checkpoint, tmp_path, "--epochs", "1")
    task = custom.make_task(custom.LAYOUTS["classification"], ("bad", "fair", "good"))
    other = custom.make_task(custom.LAYOUTS["classification"], ("one", "three", "two"))
    first, second, third = (
        load_model(task, folder).classifier.weight
        for task, folder in ((task, tmp_path / "out"), (task, tmp_path / "out"), (other, tmp_path / "out"))
    )
    assert first.equal(second) and not first.equal(third)
    dev, output = tmp_path / "unlabelled.jsonl", tmp_path / "predictions.jsonl"
    planted.write_jsonl(dev, [{"text": "is this good"}, {"text": None}, {"text": "or bad"}])
    evaluate = ["evaluate", str(tmp_path / "out"), str(dev), *CPU]
    assert cli.main([*evaluate, "--no-labels", "--output", str(output)]) == 2 and not output.exists()
    assert cli.main([*evaluate, "--no-labels", "--output", str(output), "--skip-malformed"]) == 0
    predicted = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["line"] for row in predicted] == [1, 3]
    for row in predicted:
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].get)
    assert cli.main(evaluate) == 2
    file = tmp_path / "out" / "config.json"
    file.write_text(file.read_text().replace("ForSequenceClassification", "ForTokenClassification"))
    assert not load_model(task, tmp_path / "out").classifier.weight.equal(first)


@pytest.mark.parametrize(
    ("task", "folder"),
    [
        (["classification", "--train", "absent.csv", "--eval", "absent.csv"], "."),
        (["classification", "--train", "absent.csv", "--eval", "absent.csv", "--seeds", "2"], "seed-1"),
        (["glue", "--data", "absent", "--tasks", "MRPC", "RTE"], "RTE/seed-0"),
    ],
)
def test_a_former_result_is_replaced_on_demand_alone(task, folder, tiny_checkpoint, tmp_path, capsys):
    finetune = ["finetune", *task, "--model", str(tiny_checkpoint), "--output", str(tmp_path), *CPU]
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    record = tmp_path / folder / "finetune.json"
    record.touch()
    assert cli.main(finetune) == 2
    assert f"{tmp_path / folder} holds a result" in capsys.readouterr().err
    assert cli.main([*finetune, "--overwrite"]) == 2
    assert "absent" in capsys.readouterr().err
    assert record.exists()  # nothing has been written yet


def test_seeds_and_early_stopping(tiny_checkpoint, tmp_path, capsys):
    train, dev, _ = files(tmp_path, "classification")
    given = ["--model", str(tiny_checkpoint), "--output", str(tmp_path / "out"), "--train", train, "--eval", dev]
    late = ["--epochs", "20", "--evaluations", "20", "--patience", "2", "--seeds", "2"]
    assert cli.main(["finetune", "classification", *given, *QUICK, *late, *CPU]) == 0
    assert "± " in capsys.readouterr().out.splitlines()[-1]
    weights = [(tmp_path / "out" / f"seed-{seed}" / "model.safetensors").read_bytes() for seed in (0, 1)]
    assert weights[0] != weights[1]
    for seed in (0, 1):
        assert json.loads((tmp_path / "out" / f"seed-{seed}" / "finetune.json").read_text())["steps"] < 20 * 12


def test_labels_without_a_rule_are_not_learned(tiny_checkpoint, tmp_path):
    """What the metrics say of a model that cannot know: chance."""
    drawn = planted.Words("train").draw

    def row(words):
        return {"text": words.text(), "label": drawn.choice("ab")}

    train, dev, _ = files(tmp_path, "classification", row)
    given = ["--model", str(tiny_checkpoint), "--output", str(tmp_path / "out"), "--train", train, "--eval", dev]
    assert cli.main(["finetune", "classification", *given, *QUICK, "--epochs", "2", *CPU]) == 0
    assert json.loads((tmp_path / "out" / "finetune.json").read_text())["metrics"]["accuracy"] < 0.75


def test_only_checkpoints_of_ones_own_are_removed(tiny_checkpoint, tmp_path, capsys):
    """What a killed training left is; a user's folder, or a file among the checkpoints, is not."""
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    left = tmp_path / "out" / ".training" / "checkpoint-999"
    left.mkdir(parents=True)
    tune("classification", tiny_checkpoint, tmp_path, "--epochs", "1")
    assert (tmp_path / "out" / "checkpoints").exists() and not left.parent.exists()
    left.mkdir(parents=True)
    note = left.parent / "note.txt"
    note.touch()
    given = [
        "--train",
        str(tmp_path / "train.csv"),
        "--eval",
        str(tmp_path / "dev.csv"),
        "--output",
        str(note.parents[1]),
        "--overwrite",
    ]
    assert cli.main(["finetune", "classification", "--model", str(tiny_checkpoint), *given, *CPU]) == 2
    assert ".training is where training keeps its checkpoints, but it holds note.txt" in capsys.readouterr().err
    assert note.exists() and left.exists()


MALFORMED = {
    "classification": ('"a","b","c"', "line 6: has 3 fields"),
    "pairs": ('{"text1": "a", "text2": "b", "label": "high"}', "line 5: could not convert string to float: 'high'"),
    "tokens": ('{"tokens": ["a", "b"], "tags": ["O"]}', "line 5: has 1 tags for 2 words"),
    "qa": ('{"question": "a", "context": "b c", "answer": "c", "start": 1}', "line 5: the context does not hold"),
}


@pytest.mark.parametrize("form", MALFORMED)
def test_a_malformed_row_is_named_and_nothing_else_is_lost(form, tmp_path, tiny_checkpoint, capsys):
    line, complaint = MALFORMED[form]
    source, dev, _ = files(tmp_path, form, classification_of_one_line if form == "classification" else None)
    layout = custom.LAYOUTS[form]
    layout = custom.Layout(layout.form, layout.texts, layout.label, regression=form == "pairs")
    original = custom.read(layout, source, None)
    lines = open(source).read().splitlines()
    lines.insert(4 + (form == "classification"), line)
    open(source, "w").write("\n".join(lines) + "\n")
    given = ["--model", str(tiny_checkpoint), "--output", str(tmp_path / "out"), "--train", source, "--eval", dev]
    given += ["--regression"] if form == "pairs" else []
    assert cli.main(["finetune", form, *given, *CPU]) == 2
    assert f"{source}, {complaint}" in capsys.readouterr().err
    said = []
    examples = custom.read(layout, source, None, malformed=said.append)
    assert [dataclasses.replace(example, key=None) for example in examples] == [
        dataclasses.replace(example, key=None) for example in original
    ]
    assert len(said) == 1 and complaint in said[0]


def classification_of_one_line(words):
    label, marker = words.label()
    return {"text": words.text(marker), "label": label}


def test_a_class_that_training_never_saw_is_named(tmp_path, tiny_checkpoint, capsys):
    train, dev, _ = files(tmp_path, "classification", classification_of_one_line)
    with open(dev, "a") as file:
        file.write("a text,unheard\n")
    given = ["--model", str(tiny_checkpoint), "--output", str(tmp_path / "out"), "--train", train, "--eval", dev]
    assert cli.main(["finetune", "classification", *given, *CPU]) == 2
    assert f"{dev}, line 66: 'unheard' is none of the labels 0, 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["finetune", "tokens", "--train", "absent.jsonl"], "absent.jsonl"),
        (["finetune", "tokens", "--train", "words.pdf"], "cannot read .pdf"),
        (["finetune", "glue", "--data", "absent", "--tasks", "RTE"], "absent/RTE/train.tsv"),
        (
            ["evaluate", "absent", "file.csv"],
            "finetune.json cannot be read; evaluate takes a folder that finetune made",
        ),
    ],
)
def test_what_is_missing_is_named(args, complaint, tmp_path, tiny_checkpoint, capsys):
    if args[0] == "finetune":
        args = [*args, "--model", str(tiny_checkpoint), "--output", str(tmp_path)]
        args += ["--eval", "absent.jsonl"] if args[1] == "tokens" else []
    assert cli.main([*args, *CPU]) == 2
    assert complaint in capsys.readouterr().err


LAYOUT = {"form": "pairs", "texts": ["a", "b"], "label": "c", "start": "d", "regression": True}
RECORD = {"max_length": 16, "layout": LAYOUT, "labels": []}


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ([1], "expected a JSON object, got list"),
        ({**RECORD, "max_length": "long"}, "'max_length': expected an integer"),
        ({"max_length": 16}, "'labels': expected a list, got None"),
        ({**RECORD, "layout": []}, "'layout': expected an object"),
        ({**RECORD, "layout": {}}, "'layout.form': expected one of"),
        ({**RECORD, "layout": {**LAYOUT, "more": 1}}, "'layout': expected the keys form, texts, label"),
        ({**RECORD, "layout": {**LAYOUT, "texts": ["a"]}}, "'layout.texts': expected 2 names"),
        ({**RECORD, "layout": {**LAYOUT, "label": 1}}, "'layout.label': expected a name"),
        ({**RECORD, "labels": [1]}, "'labels': expected a list of strings"),
        ({**RECORD, "labels": ["a", "b"]}, "'labels': expected names of classes, and none of a regression"),
        ({"max_length": 16, "benchmark": ["glue"]}, "'benchmark': expected one of 'glue', 'superglue'"),
        ({"max_length": 16, "benchmark": "glue"}, "'task': expected one of 'CoLA'"),
    ],
)
def test_a_damaged_record_is_named(record, complaint, tmp_path, capsys):
    (tmp_path / "finetune.json").write_text(json.dumps(record))
    assert cli.main(["evaluate", str(tmp_path), "file.csv", *CPU]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "finetune.json") in said and complaint in said


def test_a_folder_for_predictions_is_looked_for_first(tmp_path, capsys):
    (tmp_path / "finetune.json").write_text(json.dumps(RECORD))
    assert cli.main(["evaluate", str(tmp_path), "absent.csv", "--output", str(tmp_path / "no" / "file"), *CPU]) == 2
    assert f"there is no folder {tmp_path / 'no'}" in capsys.readouterr().err


@pytest.mark.parametrize("results", [[], {"RTE": []}, {"RTE": [{"accuracy": "high"}]}, {"RTE": [{"a": 1}, {"b": 1}]}])
def test_damaged_results_are_named(results, tmp_path, tiny_checkpoint, capsys):
    (tmp_path / "results.json").write_text(json.dumps(results))
    given = ["--data", "absent", "--tasks", "RTE", "--model", str(tiny_checkpoint), "--output", str(tmp_path)]
    assert cli.main(["finetune", "glue", *given, *CPU]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "results.json") in said and ("'RTE'" in said or results == [])
