"""timing.py: rounds interleave, wrong arms are never timed, memory is seen."""

import json
from pathlib import Path

import numpy as np
import pytest

from modernbert_fast import durable, timing
from modernbert_fast.timing import Arm, Measurement, interleave


def test_arms_interleave_round_by_round() -> None:
    calls: list[str] = []
    arms = [Arm(name, lambda name=name: calls.append(name)) for name in "ab"]
    measured = interleave(arms, rounds=3, warmup=2)
    assert calls == ["a", "a", "b", "b", *"ababab"]
    assert [m.name for m in measured] == ["a", "b"]
    assert all(len(m.samples) == 3 and min(m.samples) > 0 for m in measured)


def test_a_wrong_arm_is_never_timed() -> None:
    calls: list[str] = []

    def refuse(result: str) -> None:
        raise ArithmeticError(result)

    arms = [Arm("right", lambda: calls.append("right")), Arm("wrong", lambda: "bad", refuse)]
    with pytest.raises(ArithmeticError, match="bad"):
        interleave(arms, rounds=5)
    assert calls == ["right"]


def test_time_that_is_over_ends_the_rounds_and_leaves_out_what_was_not_timed(monkeypatch) -> None:
    """What has a sample keeps it."""
    clock, left_out = iter(range(100)), []
    monkeypatch.setattr(timing.time, "time", lambda: next(clock))
    arms = [Arm(name, int) for name in "abc"]

    def leave_out(arm: Arm, error: Exception) -> bool:
        left_out.append(f"{arm.name}: {error}")
        return True

    found = interleave(arms, rounds=9, leave_out=leave_out, until=4)  # three warm-ups, two samples
    assert [(m.name, len(m.samples)) for m in found] == [("a", 1), ("b", 1)]
    assert left_out == ["c: the time was over"]
    with pytest.raises(TimeoutError):
        interleave(arms, until=0)


def test_an_arm_that_may_fail_is_left_out() -> None:
    arms = [Arm("broken", lambda: 1 // 0), Arm("right", int)]
    left_out: list[tuple[str, type]] = []

    def leave_out(arm: Arm, error: Exception) -> bool:
        left_out.append((arm.name, type(error)))
        return True

    assert [m.name for m in interleave(arms, rounds=2, leave_out=leave_out)] == ["right"]
    assert left_out == [("broken", ZeroDivisionError)]


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (1, 0)])
def test_too_few_runs(rounds: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        interleave([Arm("a", int, lambda result: None)], rounds, warmup)


def test_quantiles_agree_with_numpy() -> None:
    samples = tuple(np.random.default_rng(0).random(7).tolist())
    m = Measurement("a", samples)
    np.testing.assert_allclose([m.p20, m.median, m.p80], np.quantile(samples, [0.2, 0.5, 0.8]))
    assert Measurement("a", (3.0,)).p80 == 3.0


def test_peak_memory_sees_what_is_freed_again() -> None:
    result, peak = timing.peak_memory(lambda: np.ones(8 << 20).sum())
    assert result == 8 << 20
    if peak is None:
        pytest.skip("this system keeps no high-water mark that can be reset")
    assert 60 << 20 < peak < 96 << 20  # 64 MiB and some


def test_records_are_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    durable.write_json(path, {"machine": timing.machine_facts(), "arm": Measurement("a", (1.0, 2.0), 5).as_dict()})
    record = json.loads(path.read_text())
    assert record["arm"] == {
        "name": "a",
        "median": 1.5,
        "p20": pytest.approx(1.2),
        "p80": pytest.approx(1.8),
        "samples": [1.0, 2.0],
        "peak_bytes": 5,
    }
    assert record["machine"]["torch"]
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]
