"""GLUE: its tasks in their published files or Hugging Face's copy, the paper's recipes, submission files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from modernbert_fast.durable import write_text
from modernbert_fast.training import metrics
from modernbert_fast.training.documents import HUB
from modernbert_fast.training.rows import Malformed, Row, get, one_of, read_rows
from modernbert_fast.training.tasks import (
    ACCURACY,
    BINARY,
    NLI,
    TWO_WAY,
    Benchmark,
    Example,
    Examples,
    Recipe,
    best,
    by_label,
)

F1_ACCURACY = by_label(f1=metrics.f1, accuracy=metrics.accuracy)
HIGHEST = 5.0  # similarity of STS-B
HUB_SPLITS = {"dev": "validation", "dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"}


@dataclass(frozen=True)
class GlueTask(Benchmark):
    """A task of GLUE; its splits are train, `dev` and the values of `tests`.

    Attributes:
        texts, label: columns of the files.
        key: column of the test file that numbers its rows.
        columns: of train and dev, where these have no header.
        hub: configuration of the dataset; hub_texts, hub_labels: columns and names of classes that differ there.
    """

    texts: tuple[str, ...] = ("sentence1", "sentence2")
    label: str = "label"
    key: str = "index"
    columns: tuple[str, ...] = ()
    hub: str = ""
    hub_texts: tuple[str, ...] = ()
    hub_labels: tuple[str, ...] = ()


def _task(
    name: str,
    labels: tuple[str, ...],
    measure: Any,
    base: tuple[float, float, int],
    large: tuple[float, float, int],
    **more: Any,
) -> GlueTask:
    recipes = {"base": Recipe(*base), "large": Recipe(*large)}
    defaults = {"dev": ("dev",), "tests": {f"{name}.tsv": "test"}, "hub": name.lower().replace("-", "")}  # sst2, stsb
    return GlueTask(name, "texts", labels, measure, recipes, **{**defaults, **more})


# Learning rate, weight decay and epochs of base and large: the paper's table 6, but for WNLI, which it leaves out
# (RTE's). The order is that of training: who starts from MNLI comes after it.
TASKS = {
    task.name: task
    for task in (
        _task(
            "CoLA",
            BINARY,
            by_label(matthews=metrics.matthews),
            (8e-5, 1e-6, 5),
            (3e-5, 8e-6, 5),
            texts=("sentence",),
            columns=("source", "label", "mark", "sentence"),
            hub_labels=("unacceptable", "acceptable"),
        ),
        _task(
            "SST-2",
            BINARY,
            ACCURACY,
            (8e-5, 1e-5, 2),
            (1e-5, 1e-6, 3),
            texts=("sentence",),
            hub_labels=("negative", "positive"),
        ),
        _task(
            "QQP",
            BINARY,
            F1_ACCURACY,
            (5e-5, 5e-6, 10),
            (5e-5, 8e-6, 2),
            texts=("question1", "question2"),
            label="is_duplicate",
            key="id",
            hub_labels=("not_duplicate", "duplicate"),
        ),
        _task(
            "MNLI",
            NLI,
            ACCURACY,
            (5e-5, 5e-6, 1),
            (3e-5, 1e-5, 1),
            label="gold_label",
            dev=("dev_matched", "dev_mismatched"),
            tests={"MNLI-m.tsv": "test_matched", "MNLI-mm.tsv": "test_mismatched", "AX.tsv": "AX"},
            hub_texts=("premise", "hypothesis"),
        ),
        _task("QNLI", TWO_WAY, ACCURACY, (8e-5, 5e-6, 2), (3e-5, 5e-6, 2), texts=("question", "sentence")),
        _task("RTE", TWO_WAY, ACCURACY, (5e-5, 1e-5, 3), (5e-5, 8e-6, 3), warm_start=True),
        _task(
            "MRPC",
            BINARY,
            F1_ACCURACY,
            (5e-5, 5e-6, 10),
            (8e-5, 5e-6, 2),
            texts=("#1 String", "#2 String"),
            label="Quality",
            warm_start=True,
            hub_texts=("sentence1", "sentence2"),
            hub_labels=("not_equivalent", "equivalent"),
        ),
        _task(
            "STS-B",
            (),
            by_label(pearson=metrics.pearson, spearman=metrics.spearman),
            (8e-5, 5e-6, 10),
            (8e-5, 1e-5, 10),
            label="score",
            warm_start=True,
        ),
        _task(
            "WNLI",
            BINARY,
            ACCURACY,
            (5e-5, 1e-5, 3),
            (5e-5, 8e-6, 3),
            hub_labels=("not_entailment", "entailment"),
        ),
    )
}


def read(task: GlueTask, data: str, split: str, malformed: Malformed = None) -> list[Example]:
    """The examples of a split, in order; those of a test set have no label, and its row number for a key.

    Args:
        data: folder that holds a folder a task, or hf:NAME of the dataset, such as hf:nyu-mll/glue.
        split: "train", one of task.dev or a value of task.tests.
        malformed: see read_rows; rows of a test set are never skipped.

    Raises:
        ValueError: a malformed row, by file and line.
        OSError: no such file.
    """
    test = split in task.tests.values()
    malformed = None if test else malformed
    if data.startswith(HUB):
        config = "ax" if split == "AX" else task.hub
        source = f"{data}:{config}:{'test' if split == 'AX' else HUB_SPLITS.get(split, split)}"
        texts = task.hub_texts or task.texts
        examples = read_rows(source, partial(_hub_example, task, texts, test), malformed=malformed)
    elif task.name == "MRPC" and not (Path(data) / task.name / f"{split}.tsv").exists():
        examples = _mrpc(task, Path(data) / task.name, split, malformed)
    else:
        columns = () if test else task.columns
        examples = read_rows(
            _file(task, data, split), partial(_example, task, test), columns=columns, malformed=malformed
        )
    if test and any(example.key is None for example in examples):
        return [Example(example.texts, key=number) for number, example in enumerate(examples)]
    return examples


def _file(task: GlueTask, data: str, split: str) -> Path:
    folder = Path(data) / task.name
    if split == "AX":  # GLUE's diagnostic set, which two downloads put in two places
        diagnostic = Path(data) / "diagnostic" / "diagnostic.tsv"
        return diagnostic if diagnostic.exists() else Path(data) / "AX" / "test.tsv"
    return folder / f"{split}.tsv"


def _example(task: GlueTask, test: bool, row: Row) -> list[Example]:
    texts = tuple(get(row, name) for name in task.texts)
    if test:
        return [Example(texts, key=int(row[task.key]) if task.key in row else None)]
    label = get(row, task.label)
    return [Example(texts, one_of(label, task.labels) if task.labels else _similarity(label))]


def _similarity(text: str) -> float:
    value = float(text)
    if not 0 <= value <= HIGHEST:
        raise ValueError(f"a similarity of {value} lies outside 0 to {HIGHEST:g}")
    return value


def _hub_example(task: GlueTask, texts: Sequence[str], test: bool, row: Row) -> list[Example]:
    values = tuple(get(row, name) for name in texts)
    if test:
        return [Example(values, key=get(row, "idx", int))]
    if not task.labels:
        return [Example(values, _similarity(get(row, "label", float)))]
    names = task.hub_labels or task.labels
    return [Example(values, task.labels[names.index(one_of(get(row, "label"), names))])]


def _mrpc(task: GlueTask, folder: Path, split: str, malformed: Malformed) -> list[Example]:
    """MRPC as Microsoft publishes it: one file to train on, of which a list of pairs of ids is GLUE's dev set."""
    if split == "test":
        return read_rows(folder / "msr_paraphrase_test.txt", partial(_example, task, True))
    lists = [folder / name for name in ("dev_ids.tsv", "mrpc_dev_ids.tsv")]
    source = next((path for path in lists if path.exists()), lists[0])
    dev = set(read_rows(source, lambda row: [(get(row, "#1 ID"), get(row, "#2 ID"))], columns=("#1 ID", "#2 ID")))

    def build(row: Row) -> list[Example]:
        in_dev = (get(row, "#1 ID"), get(row, "#2 ID")) in dev
        return _example(task, False, row) if in_dev == (split == "dev") else []

    return read_rows(folder / "msr_paraphrase_train.txt", build, malformed=malformed)


def write_submission(task: GlueTask, path: Path, examples: Examples, outputs: Sequence[Any]) -> None:
    """The file that GLUE's server takes: index and prediction between tabs, a row of the test set a line."""
    lines = ["index\tprediction"]
    for example, output in zip(examples, outputs, strict=True):
        answer = best(output) if task.labels else f"{min(max(output, 0.0), HIGHEST):.3f}"
        lines.append(f"{example.key}\t{answer}")
    write_text(path, "\n".join(lines) + "\n")
