"""Tasks of the user's own, from csv or jsonl: text classification, pairs, tagging of words, question answering."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from modernbert_fast.training import metrics
from modernbert_fast.training.rows import Malformed, Row, get, one_of, placed_rows, strings
from modernbert_fast.training.tasks import Example, Examples, Measure, Task, by_label

FORMS = {"classification": "texts", "pairs": "texts", "tokens": "tokens", "qa": "spans"}


@dataclass(frozen=True)
class Layout:
    """Where a row keeps what a task needs.

    Attributes:
        form: a key of FORMS.
        texts: fields: of classification a text, of pairs two, of tokens the list of words, of qa question and context.
        label: field: of classification and pairs a class or a number, of tokens the list of tags, of qa the answer's
            text, None or "" where the context has none.
        start: field: where the answer starts, in characters of the context.
        regression: labels are numbers to come close to, not names of classes.
    """

    form: str
    texts: tuple[str, ...]
    label: str
    start: str = "start"
    regression: bool = False


LAYOUTS = {
    "classification": Layout("classification", ("text",), "label"),
    "pairs": Layout("pairs", ("text1", "text2"), "label"),
    "tokens": Layout("tokens", ("tokens",), "tags"),
    "qa": Layout("qa", ("question", "context"), "answer"),
}


def read(
    layout: Layout, source: str, labels: tuple[str, ...] | None, labelled: bool = True, malformed: Malformed = None
) -> list[Example]:
    """The examples of a file, in order; the key of each is its place, such as "line 3".

    Args:
        source: see read_rows.
        labels: the classes; a row of another is malformed. None takes any.
        labelled: False reads the texts alone.

    Raises:
        ValueError: a malformed row, by file and line.
        OSError: no such file.
    """
    build: Callable[..., Example] = {"texts": _texts, "tokens": _tokens, "spans": _spans}[FORMS[layout.form]]
    placed = placed_rows(source, lambda row: [build(layout, labels, labelled, row)], malformed=malformed)
    return [replace(example, key=place) for place, example in placed]


def make_task(layout: Layout, labels: tuple[str, ...]) -> Task:
    """The task of a layout and its classes."""
    return Task(layout.form, FORMS[layout.form], labels, _measure(layout))


def classes(layout: Layout, train: Examples) -> tuple[str, ...]:
    """The classes that the training examples have, sorted; () of numbers; of answers ("",) where one is missing.

    Raises:
        ValueError: fewer than two classes.
    """
    if layout.regression:
        return ()
    if layout.form == "qa":
        return ("",) if any(example.label is None for example in train) else ()
    found = {name for example in train for name in (example.label if layout.form == "tokens" else (example.label,))}
    if len(found) < 2:
        raise ValueError(f"the training data knows one label only: {', '.join(found) or 'none'}")
    return tuple(sorted(found))


def _measure(layout: Layout) -> Measure:
    if layout.form == "tokens":
        return lambda examples, outputs: metrics.tagging([example.label for example in examples], outputs)
    if layout.form == "qa":
        return lambda examples, outputs: metrics.answers([example.gold for example in examples], outputs)
    if layout.regression:
        return by_label(pearson=metrics.pearson, spearman=metrics.spearman)
    return by_label(accuracy=metrics.accuracy, macro_f1=metrics.macro_f1)


def _texts(layout: Layout, labels: tuple[str, ...] | None, labelled: bool, row: Row) -> Example:
    texts = tuple(get(row, name) for name in layout.texts)
    if not labelled:
        return Example(texts)
    label: Any = get(row, layout.label, str, int, float, bool)
    if layout.regression:
        label = float(label)
        if not math.isfinite(label):
            raise ValueError(f"{label} is no number to learn")
        return Example(texts, label)
    if label == "":
        raise ValueError(f"field {layout.label!r} is empty")
    return Example(texts, str(label) if labels is None else one_of(str(label), labels))


def _tokens(layout: Layout, labels: tuple[str, ...] | None, labelled: bool, row: Row) -> Example:
    words = strings(row, layout.texts[0])
    if not words:
        raise ValueError(f"field {layout.texts[0]!r} holds no word")
    if not labelled:
        return Example(words)
    tags = strings(row, layout.label)
    if len(tags) != len(words):
        raise ValueError(f"has {len(tags)} tags for {len(words)} words")
    return Example(words, tags if labels is None else tuple(one_of(tag, labels) for tag in tags))


def _spans(layout: Layout, labels: tuple[str, ...] | None, labelled: bool, row: Row) -> Example:
    question, context = (get(row, name) for name in layout.texts)
    answer = get(row, layout.label, str, type(None)) if labelled else None
    if not answer:
        return Example((question, context))
    start = int(get(row, layout.start, int, str))
    if start < 0 or context[start : start + len(answer)] != answer:
        raise ValueError(f"the context does not hold the answer {answer!r} at character {start}")
    return Example((question, context), (answer, start), gold=(answer,))
