"""SuperGLUE: its tasks in their published jsonl files or Hugging Face's copy, recipes, submission files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from modernbert_fast.durable import write_text
from modernbert_fast.training import metrics, superglue_hub
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

BOOLS = ("False", "True")
QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
Build = Callable[..., list[Example]]  # (row, test)
SPLITS = {"train": "train", "dev": "val", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class SuperGlueTask(Benchmark):
    """A task of SuperGLUE; its splits are train, dev, and the values of `tests`.

    Attributes:
        build: a row, and whether it is of a test set -> its examples, one that the head answers each.
        lines: examples of a test set and what was predicted -> rows of the submission file.
    """

    build: Build
    lines: Callable[[Examples, Sequence[Any]], Iterator[Row]]


def read(task: SuperGlueTask, data: str, split: str, malformed: Malformed = None) -> list[Example]:
    """The examples of a split, in order; those of a test set have no label.

    Args:
        data: folder that holds a folder a task, or hf:NAME of the dataset, such as hf:aps/super_glue.
        split: "train", "dev" or a value of task.tests.
        malformed: see read_rows; rows of a test set are never skipped.

    Raises:
        ValueError: a malformed row, by file and line.
        OSError: no such file.
    """
    test = split in task.tests.values()
    malformed = None if test else malformed
    if data.startswith(HUB):
        source = superglue_hub.source(data, task.name, split)
        return read_rows(
            source, lambda row: task.build(superglue_hub.published(task.name, row), test), malformed=malformed
        )
    name = SPLITS.get(split)
    path = Path(data) / task.name / f"{name}.jsonl" if name else Path(data) / split / f"{split}.jsonl"
    return read_rows(path, partial(task.build, test=test), malformed=malformed)


def write_submission(task: SuperGlueTask, path: Path, examples: Examples, outputs: Sequence[Any]) -> None:
    """The file that SuperGLUE's server takes: a JSON object a line."""
    text = "".join(json.dumps(line) + "\n" for line in task.lines(examples, outputs))
    write_text(path, text)


def _pair(first: str, second: str, labels: Sequence[str], kind: type = str) -> Build:
    """Rows of two texts, in fields of these names, and a label of the type `kind`."""

    def build(row: Row, test: bool) -> list[Example]:
        label = None if test else one_of(str(get(row, "label", kind)), labels)
        return [Example((get(row, first), get(row, second)), label, get(row, "idx", int))]

    return build


def _rte(row: Row, test: bool) -> list[Example]:
    """RTE, and the diagnostic sets that its model answers, one of which names the texts otherwise."""
    names = ("sentence1", "sentence2") if "sentence1" in row else ("premise", "hypothesis")
    return _pair(*names, TWO_WAY)(row, test)


def _copa(row: Row, test: bool) -> list[Example]:
    question = QUESTIONS[one_of(get(row, "question"), tuple(QUESTIONS))]
    texts = (f"{get(row, 'premise')} {question}", get(row, "choice1"), get(row, "choice2"))
    return [Example(texts, None if test else one_of(get(row, "label", int), (0, 1)), get(row, "idx", int))]


def _wic(row: Row, test: bool) -> list[Example]:
    """Each sentence with the word between marks."""
    marked = []
    for number in "12":
        sentence = get(row, f"sentence{number}")
        start, end = get(row, f"start{number}", int), get(row, f"end{number}", int)
        if not 0 <= start < end <= len(sentence):
            raise ValueError(f"start{number} and end{number} are {start} and {end}, outside sentence{number}")
        marked.append(f"{sentence[:start]}* {sentence[start:end]} *{sentence[end:]}")
    label = None if test else one_of(str(get(row, "label", bool)), BOOLS)
    return [Example((marked[0], marked[1]), label, get(row, "idx", int))]


def _wsc(row: Row, test: bool) -> list[Example]:
    """The text with both spans between marks. Places are counted in words between white space."""
    words, target = get(row, "text").split(), get(row, "target", dict)
    for number, mark in (("1", "*"), ("2", "#")):
        start, span = get(target, f"span{number}_index", int), get(target, f"span{number}_text").split()
        stop = start + len(span)
        if not span or not 0 <= start < stop <= len(words):
            raise ValueError(f"span{number}_index is {start}, outside the text of {len(words)} words")
        words[start] = f"{mark} {words[start]}"
        words[stop - 1] = f"{words[stop - 1]} {mark}"
    label = None if test else one_of(str(get(row, "label", bool)), BOOLS)
    return [Example((" ".join(words),), label, get(row, "idx", int))]


def _multirc(row: Row, test: bool) -> list[Example]:
    """An example an answer; the key is (paragraph, question, answer)."""
    passage, paragraph = get(row, "passage", dict), get(row, "idx", int)
    examples = []
    for question in get(passage, "questions", list):
        for answer in get(question, "answers", list):
            label = None if test else one_of(str(get(answer, "label", int)), BINARY)
            key = (paragraph, get(question, "idx", int), get(answer, "idx", int))
            asked = f"{get(question, 'question')} {get(answer, 'text')}"
            examples.append(Example((asked, get(passage, "text")), label, key))
    return examples


def _multirc_measure(examples: Examples, outputs: Sequence[Any]) -> dict[str, float]:
    truth, predicted = [example.label for example in examples], [best(output) for output in outputs]
    questions = [example.key[:2] for example in examples]
    return {"f1a": metrics.f1(truth, predicted), "exact": metrics.exact_groups(truth, predicted, questions)}


def _multirc_lines(examples: Examples, outputs: Sequence[Any]) -> Iterator[Row]:
    paragraphs: dict[int, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for example, output in zip(examples, outputs, strict=True):
        paragraph, question, answer = example.key
        paragraphs[paragraph][question].append({"idx": answer, "label": int(best(output))})
    for paragraph, questions in paragraphs.items():
        asked = [{"idx": question, "answers": answers} for question, answers in questions.items()]
        yield {"idx": paragraph, "passage": {"questions": asked}}


def _record(row: Row, test: bool) -> list[Example]:
    """An example an entity of the passage, put where the query has a gap; the key is (query, entity)."""
    passage = get(row, "passage", dict)
    text = get(passage, "text")
    spans = [(get(span, "start", int), get(span, "end", int) + 1) for span in get(passage, "entities", list)]
    if any(not 0 <= start < stop <= len(text) for start, stop in spans):
        raise ValueError("an entity lies outside the passage")
    names = dict.fromkeys(text[start:stop] for start, stop in spans)
    if not names:
        raise ValueError("the passage has no entities, of which one would be the answer")
    examples = []
    for asked in get(row, "qas", list):
        gold = () if test else tuple(get(answer, "text") for answer in get(asked, "answers", list))
        query, number = get(asked, "query"), get(asked, "idx", int)
        for name in names:
            label = None if test else BINARY[name in gold]
            filled = query.replace("@placeholder", name)
            examples.append(Example((filled, text.replace("@highlight", "")), label, (number, name), gold))
    return examples


def _record_answers(examples: Examples, outputs: Sequence[Any]) -> dict[int, str]:
    """The entity of every query that is the most probable answer."""
    chosen: dict[int, tuple[float, str]] = {}
    for example, output in zip(examples, outputs, strict=True):
        number, name = example.key
        chosen[number] = max(chosen.get(number, (-1.0, "")), (output["1"], name), key=lambda pair: pair[0])
    return {number: name for number, (_, name) in chosen.items()}


def _record_measure(examples: Examples, outputs: Sequence[Any]) -> dict[str, float]:
    chosen = _record_answers(examples, outputs)
    gold = {example.key[0]: example.gold for example in examples}
    return metrics.answers([gold[number] for number in chosen], list(chosen.values()))


def _record_lines(examples: Examples, outputs: Sequence[Any]) -> Iterator[Row]:
    for number, name in _record_answers(examples, outputs).items():
        yield {"idx": number, "label": name}


def _as(write: Callable[[Any], Any]) -> Callable[[Examples, Sequence[Any]], Iterator[Row]]:
    """Rows of an idx and a label, written as the server wants it."""

    def lines(examples: Examples, outputs: Sequence[Any]) -> Iterator[Row]:
        for example, output in zip(examples, outputs, strict=True):
            yield {"idx": example.key, "label": write(best(output))}

    return lines


CB_MEASURE = by_label(accuracy=metrics.accuracy, f1=metrics.macro_f1)


def _task(
    name: str, kind: str, labels: tuple[str, ...], measure: Any, recipe: Recipe, build: Any, lines: Any, **more: Any
) -> SuperGlueTask:
    tests = {f"{name}.jsonl": "test", **more.pop("tests", {})}
    recipes = {"base": recipe, "large": recipe}
    return SuperGlueTask(name, kind, labels, measure, recipes, ("dev",), tests, build=build, lines=lines, **more)


# Learning rate, epochs and batch size are the defaults of the jobs in ModernBERT's repository, which has none for
# ReCoRD, RTE and WSC: those take MultiRC's, GLUE's and COPA's. It names no weight decay: 5e-6 is the middle of the
# paper's sweep.
TASKS = {
    task.name: task
    for task in (
        _task(
            "BoolQ",
            "texts",
            BOOLS,
            ACCURACY,
            Recipe(5e-5, 5e-6, 5, 48),
            _pair("question", "passage", BOOLS, bool),
            _as(str.lower),
        ),
        _task(
            "CB", "texts", NLI, CB_MEASURE, Recipe(1e-5, 5e-6, 30, 16), _pair("premise", "hypothesis", NLI), _as(str)
        ),
        _task("COPA", "choices", (), ACCURACY, Recipe(1e-5, 5e-6, 30, 16), _copa, _as(int)),
        _task("MultiRC", "texts", BINARY, _multirc_measure, Recipe(5e-5, 5e-6, 6, 48), _multirc, _multirc_lines),
        _task("ReCoRD", "texts", BINARY, _record_measure, Recipe(5e-5, 5e-6, 6, 48), _record, _record_lines),
        _task(
            "RTE",
            "texts",
            TWO_WAY,
            ACCURACY,
            Recipe(5e-5, 1e-5, 3),
            _rte,
            _as(str),
            tests={"AX-b.jsonl": "AX-b", "AX-g.jsonl": "AX-g"},
            warm_start=True,
        ),
        _task("WiC", "texts", BOOLS, ACCURACY, Recipe(3e-5, 5e-6, 3, 16), _wic, _as(str.lower)),
        _task("WSC", "texts", BOOLS, ACCURACY, Recipe(1e-5, 5e-6, 30, 16), _wsc, _as(str)),
    )
}
