"""The sizing page: its figures are the command's, and the simulation agrees with what can be worked out by hand."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "docs" / "scaling.md").is_file(), reason="needs the source tree")


@pytest.fixture(autouse=True)
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scaling

    return scaling


def test_the_page_is_what_the_command_prints(scaling, capsys):
    scaling.main([])
    text = scaling.PAGE.read_text()
    assert scaling.page(text, capsys.readouterr().out.rstrip("\n") + "\n") == text, "run scaling with --write"


def test_prices_are_inputs(scaling, capsys):
    scaling.main(["--price", "H200=40", "--startup", "0"])
    dear = capsys.readouterr().out
    assert "H200 $40.00" in dear and "takes 0 s to start" in dear
    with pytest.raises(SystemExit):
        scaling.main(["--price", "abacus=1"])
    assert "DEVICE=DOLLARS" in capsys.readouterr().err


def test_one_worker_each(scaling):
    pair = [scaling.Stage("tokenise", 1, 1.0), scaling.Stage("model", 1, 3.0), scaling.Stage("store", 1, 0.5)]
    seconds, busy = scaling.simulate(pair, 10)
    assert seconds == pytest.approx(1 + 10 * 3 + 0.5)
    assert busy == pytest.approx({"tokenise": 10 / seconds, "model": 30 / seconds, "store": 5 / seconds})


@pytest.mark.parametrize("workers", [3, 8])
@pytest.mark.parametrize("slow", ["tokenise", "model", "store"])
def test_the_slowest_stage_sets_the_pace(scaling, slow, workers):
    seconds = {"tokenise": 0.1, "model": 0.2, "store": 0.15, slow: 0.9}
    found = [scaling.Stage(name, workers, each) for name, each in seconds.items()]
    took, busy = scaling.simulate(found, 100_000)
    assert took == pytest.approx(100_000 * 0.9 / workers, rel=0.001)
    assert busy[slow] == pytest.approx(1, rel=0.001) and max(busy, key=busy.get) == slow


def test_a_full_queue_stops_the_stage_before_it(scaling):
    """Without queues a worker holds its shard, so stages that take turns being slow do not average out."""
    fast = [scaling.Stage("model", 2, 1.0), scaling.Stage("store", 1, 1.0)]
    assert scaling.simulate(fast, 100, queue=1)[0] == pytest.approx(101)


def test_measured_rates_come_from_the_records(scaling, monkeypatch, tmp_path):
    case = {"case": "encoder base, 512s", "state": "passed"}
    case["result"] = {"rows": [{"arm": "linears alone", "Mtok/s": 9.0}, {"arm": "modernbert_fast", "Mtok/s": 1.5}]}
    broken = {"case": "encoder large, 512s", "state": "failed"}
    (tmp_path / "h200").mkdir()
    (tmp_path / "h200" / "bench-gpu.json").write_text(json.dumps({"cases": [case, broken]}))
    monkeypatch.setattr(scaling, "RESULTS", tmp_path)
    found = {(rate.model, rate.length, rate.source): rate.tokens_s for rate in scaling.gpu_rates()}
    assert found["base", 512, "measured, bfloat16"] == 1.5e6
    assert [source for model, length, source in found if model == "large"] == ["predicted", "predicted"]
    assert 2e6 < found["base", 512, "predicted"] < 4e6
    monkeypatch.setattr(scaling, "RESULTS", tmp_path / "none")
    assert {rate.source for rate in scaling.gpu_rates()} == {"predicted"}
