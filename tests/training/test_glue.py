"""GLUE from its published files: every task learns a planted rule and writes the file that the server takes."""

import json

import planted
import pytest

from modernbert_fast import cli
from modernbert_fast.training import glue

pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("keep_threads")

CPU = ("--device", "cpu", "--threads", "1")
QUICK = ("--learning-rate", "2e-3", "--epochs", "6", "--batch-size", "16", "--evaluations", "2", "--patience", "9")
LABELS = {
    "CoLA": planted.BINARY,
    "SST-2": planted.BINARY,
    "MRPC": planted.BINARY,
    "QQP": planted.BINARY,
    "WNLI": planted.BINARY,
    "QNLI": planted.TWO_WAY,
    "RTE": planted.TWO_WAY,
    "MNLI-m": planted.NLI,
    "MNLI-mm": planted.NLI,
    "AX": planted.NLI,
}
TESTS = {"MNLI-m": ("MNLI", "test_matched"), "MNLI-mm": ("MNLI", "test_mismatched"), "AX": ("MNLI", "test")}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue")
    planted.write_glue(folder)
    return folder


@pytest.fixture(scope="module")
def output(data, tiny_checkpoint, tmp_path_factory):
    """All of GLUE, trained once: first what is learned fast, then six degrees of similarity."""
    folder = tmp_path_factory.mktemp("tuned")
    given = ["--data", str(data), "--model", str(tiny_checkpoint), "--output", str(folder)]
    classes = [name for name in glue.TASKS if name != "STS-B"]
    assert cli.main(["finetune", "glue", "--tasks", *classes, *given, *QUICK, *CPU]) == 0
    assert cli.main(["finetune", "glue", "--tasks", "STS-B", *given, *QUICK, "--epochs", "16", *CPU]) == 0
    return folder


@pytest.mark.parametrize("task", planted.GLUE_LABELS)
def test_a_planted_rule_is_learned(output, task):
    (metrics,) = json.loads((output / "results.json").read_text())[task]
    assert min(metrics.values()) > 0.95, metrics
    assert len(metrics) == {"MRPC": 2, "QQP": 2, "STS-B": 2, "MNLI": 2}.get(task, 1)


@pytest.mark.parametrize("name", [*LABELS, "STS-B"])
def test_the_submission_is_what_the_server_takes(output, name):
    """Header, a row of every id in order, the server's words for the labels; and they follow the planted rule."""
    header, *lines = (output / "submission" / f"{name}.tsv").read_text().splitlines()
    assert header == "index\tprediction"
    ids, predicted = zip(*(line.split("\t") for line in lines), strict=True)
    _, truth = planted.glue_rows(*TESTS.get(name, (name, "test")))
    assert ids == tuple(map(str, range(len(truth))))
    if name == "STS-B":
        assert all(0 <= float(value) <= 5 for value in predicted)
        assert sum(abs(float(one) - float(other)) for one, other in zip(predicted, truth, strict=True)) < 0.6 * len(ids)
    else:
        assert set(predicted) <= set(LABELS[name])
        assert sum(map(str.__eq__, predicted, truth)) > 0.95 * len(ids)


def test_who_starts_from_mnli(output):
    starts = {
        task: json.loads((output / task / "seed-0" / "finetune.json").read_text())["start"] for task in glue.TASKS
    }
    warm = {task for task, start in starts.items() if start == str(output / "MNLI" / "seed-0")}
    assert warm == {"RTE", "MRPC", "STS-B"}


def test_the_papers_recipes():
    base, large = (
        {name: task.recipes[size] for name, task in glue.TASKS.items() if name != "WNLI"} for size in ("base", "large")
    )
    rates = {name: (r.learning_rate, r.weight_decay, r.epochs, r.batch_size) for name, r in base.items()}
    assert rates["CoLA"] == (8e-5, 1e-6, 5, 64) and rates["MNLI"] == (5e-5, 5e-6, 1, 64)
    assert (
        sum(recipe.epochs for recipe in base.values()) == 43 and sum(recipe.epochs for recipe in large.values()) == 28
    )


def test_evaluate_reads_the_folder_again(output, data, tmp_path, capsys):
    model = str(output / "MNLI" / "seed-0")
    assert cli.main(["evaluate", model, str(data), "--output", str(tmp_path), "--batch-size", "7", *CPU]) == 0
    shown = capsys.readouterr().out
    (metrics,) = json.loads((output / "results.json").read_text())["MNLI"]
    for split in ("dev_matched", "dev_mismatched"):
        assert f"MNLI {split}: accuracy {100 * metrics[f'{split}_accuracy']:.1f} (64 examples)" in shown
    for name in ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"):
        assert (tmp_path / name).read_bytes() == (output / "submission" / name).read_bytes()


def test_mrpc_in_microsofts_files(data, tmp_path):
    planted.write_mrpc_originals(data / "MRPC", tmp_path / "MRPC")
    task = glue.TASKS["MRPC"]
    for split in ("train", "dev", "test"):
        expected, actual = (glue.read(task, str(folder), split) for folder in (data, tmp_path))
        assert actual == expected
    (tmp_path / "MRPC" / "dev_ids.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="dev_ids.tsv"):
        glue.read(task, str(tmp_path), "train")


MALFORMED = {  # what stands in line 5 of the file, and what is said of it
    "CoLA train": ("gj04\t1\tonly three", "has 3 fields, 4 were expected"),
    "CoLA dev": ("gj04\t2\t\tA sentence.", "'2' is none of the labels 0, 1"),
    "SST-2 train": ("a sentence without a label", "has 1 fields, 2 were expected: sentence, label"),
    "SST-2 dev": ("", "has 1 fields"),
    "QQP train": ("1\t2\t3\ta\tb\tc\t1", "has 7 fields, 6 were expected"),
    "MNLI dev_matched": ("\t".join("0pqfbbpp") + "\ta\tb\t-\t-", "'-' is none of the labels entailment"),
    "STS-B train": ("\t".join("0123456ab") + "\tx", "could not convert string to float: 'x'"),
    "STS-B dev": ("\t".join("0123456ab") + "\t5.5", "5.5 lies outside 0 to 5"),
    "RTE train": (b"1\tcaf\xe9\tb\tentailment", "not UTF-8"),
    "RTE test": ("1\ta", "has 2 fields"),
    "WNLI test": ("one\ta\tb", "invalid literal for int"),
}


@pytest.mark.parametrize("where", MALFORMED)
def test_a_malformed_row_is_named_and_nothing_else_is_lost(data, tmp_path, where):
    name, split = where.split()
    line, complaint = MALFORMED[where]
    lines = (data / name / f"{split}.tsv").read_bytes().splitlines()
    original = glue.read(glue.TASKS[name], str(data), split)
    lines.insert(4, line if isinstance(line, bytes) else line.encode())
    path = tmp_path / name / f"{split}.tsv"
    path.parent.mkdir()
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError) as error:
        glue.read(glue.TASKS[name], str(tmp_path), split)
    assert str(error.value).startswith(f"{path}, line 5: ") and complaint in str(error.value)
    said = []
    if "test" in split:  # whose rows are never skipped: the server wants them all
        with pytest.raises(ValueError, match="line 5"):
            glue.read(glue.TASKS[name], str(tmp_path), split, said.append)
        return
    assert glue.read(glue.TASKS[name], str(tmp_path), split, said.append) == original
    assert said == [str(error.value)]


def test_the_command_names_the_row_too(data, tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\n")
    given = ["--data", str(tmp_path), "--model", str(tiny_checkpoint), "--output", str(tmp_path / "out")]
    assert cli.main(["finetune", "glue", "--tasks", "RTE", *given, *CPU]) == 2
    assert f"{tmp_path / 'RTE' / 'train.tsv'}, line 2: has 3 fields" in capsys.readouterr().err


def test_from_a_dataset_of_hugging_face(monkeypatch):
    """Classes come as numbers with names of their own there, and splits and columns under other names."""
    datasets = pytest.importorskip("datasets")
    texts = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "idx": [7, 8]}
    names = {"mrpc": ["not_equivalent", "equivalent"], "rte": ["entailment", "not_entailment"]}
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        if config == "stsb":
            return datasets.Dataset.from_dict({**texts, "label": [2.5, 0.0]})
        rows = {**texts, "label": [-1, -1] if split == "test" else [1, 0]}
        if config == "mnli":
            rows = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "idx": [0, 1], "label": [2, 1]}
        data = datasets.Dataset.from_dict(rows)
        classes = names.get(config, ["entailment", "neutral", "contradiction"])
        return data.cast_column("label", datasets.ClassLabel(names=classes))

    monkeypatch.setattr(datasets, "load_dataset", load)
    read = {
        (name, split): glue.read(glue.TASKS[name], "hf:nyu-mll/glue", split)
        for name, split in (
            ("MRPC", "train"),
            ("RTE", "dev"),
            ("MNLI", "dev_mismatched"),
            ("STS-B", "train"),
            ("RTE", "test"),
        )
    }
    assert [example.label for example in read["MRPC", "train"]] == ["1", "0"]
    assert [example.label for example in read["RTE", "dev"]] == ["not_entailment", "entailment"]
    assert [example.label for example in read["MNLI", "dev_mismatched"]] == ["contradiction", "neutral"]
    assert [example.label for example in read["STS-B", "train"]] == [2.5, 0.0]
    assert [(example.label, example.key) for example in read["RTE", "test"]] == [(None, 7), (None, 8)]
    assert all([example.texts for example in examples] == [("a", "c"), ("b", "d")] for examples in read.values())
    assert asked[0] == ("nyu-mll/glue", "mrpc", "train") and asked[2] == (
        "nyu-mll/glue",
        "mnli",
        "validation_mismatched",
    )
