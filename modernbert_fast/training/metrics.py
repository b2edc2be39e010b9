"""Official metrics of GLUE, SuperGLUE, SQuAD and CoNLL, by scikit-learn and scipy. All are fractions; 1 is best."""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

Labels = Sequence[Any]


def accuracy(truth: Labels, predicted: Labels) -> float:
    """Share of right labels."""
    return float(np.mean([one == other for one, other in zip(truth, predicted, strict=True)]))


def f1(truth: Labels, predicted: Labels) -> float:
    """F1 of the class "1"."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predicted, pos_label="1", average="binary", zero_division=0))


def macro_f1(truth: Labels, predicted: Labels) -> float:
    """Mean over the classes of their F1."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predicted, average="macro", zero_division=0))


def matthews(truth: Labels, predicted: Labels) -> float:
    """Matthews' correlation; 0 when one side has one class only."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(truth, predicted))


def pearson(truth: Labels, predicted: Labels) -> float:
    """Correlation of values; 0 when one side is constant."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, truth, predicted)


def spearman(truth: Labels, predicted: Labels) -> float:
    """Correlation of ranks; 0 when one side is constant."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, truth, predicted)


def _correlation(measure: Callable[..., Any], truth: Labels, predicted: Labels) -> float:
    if len(set(truth)) < 2 or len(set(predicted)) < 2:
        return 0.0
    return float(measure(truth, predicted).statistic)


def exact_groups(truth: Labels, predicted: Labels, groups: Sequence[Hashable]) -> float:
    """MultiRC's EM: share of groups (questions) without a wrong label."""
    right: dict[Hashable, bool] = defaultdict(lambda: True)
    for one, other, group in zip(truth, predicted, groups, strict=True):
        right[group] &= one == other
    return float(np.mean(list(right.values())))


def normalized(answer: str) -> str:
    """An answer as SQuAD and ReCoRD compare it: lower case, no punctuation, no articles, single spaces."""
    kept = "".join(character for character in answer.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def answer_scores(gold: Sequence[str], predicted: str) -> tuple[float, float]:
    """Exact match and F1 of words of one answer, each the best over the gold answers; no gold answer means "" is."""
    pairs = [(normalized(one), normalized(predicted)) for one in gold or [""]]
    return max(float(one == other) for one, other in pairs), max(_words_f1(one, other) for one, other in pairs)


def _words_f1(gold: str, predicted: str) -> float:
    one, other = gold.split(), predicted.split()
    if not one or not other:
        return float(one == other)
    common = (Counter(one) & Counter(other)).total()
    return 2 * common / (len(one) + len(other))


def answers(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 over questions."""
    scores = [answer_scores(one, other) for one, other in zip(gold, predicted, strict=True)]
    exact, words = np.mean(scores, axis=0)
    return {"exact": float(exact), "f1": float(words)}


def entities(tags: Iterable[str | None]) -> Iterator[tuple[int, int, str]]:
    """Entities (first word, one after the last, kind) of tags such as B-PER, I-PER, O; a stray I- begins one."""
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = (tag or "O").partition("-")
        if kind and (prefix != "I" or name != kind):
            yield start, place, kind
            kind = ""
        if prefix in ("B", "I") and not kind:
            start, kind = place, name


def tagging(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str | None]]) -> dict[str, float]:
    """Share of right tags; and where tags are B-, I- and O, F1 of whole entities, as CoNLL counts them."""
    words = [pair for one, other in zip(truth, predicted, strict=True) for pair in zip(one, other, strict=True)]
    scores = {"accuracy": accuracy(*zip(*words, strict=True))}
    if all(tag == "O" or tag[:2] in ("B-", "I-") for one in truth for tag in one):
        found = [(set(entities(one)), set(entities(other))) for one, other in zip(truth, predicted, strict=True)]
        both, all_ = sum(len(one & other) for one, other in found), sum(len(one) + len(other) for one, other in found)
        scores["f1"] = 2 * both / all_ if all_ else 1.0
    return scores
