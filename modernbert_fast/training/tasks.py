"""What a task is: examples, labels, metrics, and the kind of head that answers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from modernbert_fast.training import metrics

NLI = ("entailment", "neutral", "contradiction")
TWO_WAY = ("entailment", "not_entailment")
BINARY = ("0", "1")


@dataclass(frozen=True)
class Example:
    """One thing to predict.

    Attributes:
        texts: what the model reads. texts: one or two; choices: the premise, then the choices; tokens: the words;
            spans: question and context.
        label: texts: a name, or a number where the task has no names; choices: the number of the right one; tokens:
            a name a word; spans: the answer and where it starts in the context, or None where it has none.
        key: what the submission or the file calls it.
        gold: right answers, where the metric compares with more than the label.
    """

    texts: tuple[str, ...]
    label: Any = None
    key: Any = None
    gold: tuple[str, ...] = ()


Examples = Sequence[Example]
Measure = Callable[[Examples, Sequence[Any]], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """Attributes:
    name: of the task.
    kind: a key of kinds.KINDS: texts, choices, tokens or spans.
    labels: names of the classes, in the order of the model's outputs; () for a number; of spans ("",) where a question
        may have no answer.
    measure: examples and what was predicted for each -> metrics, the first name first in tables.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    measure: Measure


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters that differ by task."""

    learning_rate: float
    weight_decay: float
    epochs: int
    batch_size: int = 64


@dataclass(frozen=True)
class Benchmark(Task):
    """A task of a published benchmark.

    Attributes:
        recipes: by size, "base" and "large".
        dev: names of its development sets; the first chooses the best checkpoint.
        tests: its test sets by the name of the submission file.
        warm_start: training starts from a model of MNLI.
    """

    recipes: dict[str, Recipe]
    dev: tuple[str, ...]
    tests: dict[str, str]
    warm_start: bool = False


def best(output: dict[Any, float]) -> Any:
    """The label of the largest probability."""
    return max(output, key=output.__getitem__)


def by_label(**measures: Callable[[Sequence[Any], Sequence[Any]], float]) -> Measure:
    """Metrics of labels against the most probable ones, or of numbers against numbers."""

    def measure(examples: Examples, outputs: Sequence[Any]) -> dict[str, float]:
        truth = [example.label for example in examples]
        predicted = [best(output) if isinstance(output, dict) else output for output in outputs]
        return {name: function(truth, predicted) for name, function in measures.items()}

    return measure


ACCURACY = by_label(accuracy=metrics.accuracy)


def score(values: dict[str, float]) -> float:
    """The one number of a task, as the benchmarks define it: the mean of its metrics."""
    return sum(values.values()) / len(values)
