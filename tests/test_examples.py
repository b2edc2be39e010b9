"""The examples run offline and find what they say they find."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not EXAMPLES.is_dir(), reason="needs the source tree"),
]


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_contract_clauses():
    assert example("contract_clauses").main(steps=20, lengths=(2048,)) > 0.9


def test_patient_notes_search():
    found = example("patient_notes_search").main()
    assert set(found[0]) == {"n1", "n3"} and found[1][0] == "n1" and found[2][0] == "n2"


def test_support_conversations():
    assert example("support_conversations").main() == ["printer-0", "network-1", "account-1"]


def test_annual_report_sentiment():
    (share,) = example("annual_report_sentiment").main(learn=60, held_out=20, lengths=((500, 2500),))
    assert share >= 0.8  # chance is 0.5


def test_reranking():
    before, after = example("reranking").main()
    assert after > 0.4 and after > before + 0.1  # chance is 0.1 of those that are among ten candidates


def test_examples_are_short():
    assert len(list(EXAMPLES.glob("*.py"))) == 6
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name
