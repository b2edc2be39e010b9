"""Metrics against values worked out by hand and against scikit-learn's on the whole."""

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from modernbert_fast.training import metrics  # noqa: E402


def test_of_classes():
    truth, predicted = list("1100"), list("1010")
    assert metrics.accuracy(truth, predicted) == 0.5
    assert metrics.f1(truth, predicted) == 0.5
    assert metrics.matthews(truth, predicted) == 0
    assert metrics.matthews(truth, truth) == 1 and metrics.matthews(truth, list("0011")) == -1
    assert metrics.f1(list("000"), list("000")) == 0  # no positive at all
    assert metrics.macro_f1(list("aabbc"), list("abbbc")) == pytest.approx((2 / 3 + 4 / 5 + 1) / 3)


def test_f1_is_of_the_class_1():
    assert metrics.f1(list("1000"), list("0000")) == 0
    assert metrics.f1(list("1000"), list("1000")) == 1
    assert metrics.f1(list("1110"), list("1111")) == pytest.approx(6 / 7)


def test_of_numbers():
    assert metrics.pearson([0, 1, 2], [1, 3, 5]) == pytest.approx(1)
    assert metrics.spearman([0, 1, 2, 3], [0, 1, 100, 50]) == pytest.approx(0.8)
    assert metrics.pearson([0, 1, 2], [4, 4, 4]) == 0 == metrics.spearman([0, 1, 2], [4, 4, 4])  # not NaN


def test_exact_match_of_multirc_wants_every_answer_of_a_question():
    truth, predicted = list("10110"), list("10100")
    assert metrics.exact_groups(truth, predicted, [(0, 0), (0, 0), (0, 1), (0, 1), (1, 0)]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("gold", "predicted", "exact", "f1"),
    [
        (["The Eiffel Tower"], "eiffel tower.", 1, 1),
        (["Eiffel Tower"], "the tower", 0, 2 / 3),
        (["a b", "tower"], "Tower", 1, 1),
        (["U.S."], "US", 1, 1),
        (["an"], "the", 1, 1),  # both are nothing without articles
        (["tower"], "", 0, 0),
        ([], "", 1, 1),
        ([], "tower", 0, 0),
        (["to to be"], "to be be", 0, 2 / 3),
    ],
)
def test_answers_are_compared_as_squad_does(gold, predicted, exact, f1):
    assert metrics.answer_scores(gold, predicted) == (exact, pytest.approx(f1))
    assert metrics.answers([gold, ["x"]], [predicted, "x"]) == {
        "exact": pytest.approx((exact + 1) / 2),
        "f1": pytest.approx((f1 + 1) / 2),
    }


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", [(0, 2, "PER"), (3, 4, "LOC")]),
        ("B-PER B-PER I-PER", [(0, 1, "PER"), (1, 3, "PER")]),
        ("I-PER I-LOC", [(0, 1, "PER"), (1, 2, "LOC")]),
        ("O B-PER", [(1, 2, "PER")]),
        ("O O", []),
    ],
)
def test_entities(tags, expected):
    assert list(metrics.entities(tags.split())) == expected


def test_tagging_counts_whole_entities_and_words_that_were_cut():
    truth = ["B-PER I-PER O".split(), "B-LOC O".split()]
    assert metrics.tagging(truth, truth) == {"accuracy": 1, "f1": 1}
    cut = [["B-PER", None, None], ["B-LOC", "O"]]
    assert metrics.tagging(truth, cut) == {"accuracy": pytest.approx(3 / 5), "f1": pytest.approx(0.5)}
    assert metrics.tagging([["NOUN", "VERB"]], [["NOUN", "NOUN"]]) == {"accuracy": 0.5}
