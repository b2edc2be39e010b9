"""`make test-gpu` and `make bench-gpu` without a GPU: both rehearsals end, nothing that fails stops them, and the
predictions are made of what the benchmarks count."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

PLANTED = """
import os, pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from gpu.journal import Case, Skip, work

def wrong(): raise ValueError("planted")
def crashes(): os._exit(11)
def hangs(): time.sleep(60)
def skips(): raise Skip("not here")
def fails(): return {"rows": [{"arm": "b", "ms": 2.5}], "failures": {"b": "beyond"}}
def right(): return {"rows": [{"arm": "a", "ms": 1.5}], "missing": {"rival": "no package"}}

cases = [Case("wrong", wrong), Case("crashes", crashes), Case("skips", skips), Case("hangs", hangs, limit=1.0),
         Case("fails", fails), Case("right", right)]
work(cases, pathlib.Path(sys.argv[-1]), time.time() + 600)
"""


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def rehearse(program, folder, *options):
    command = [sys.executable, str(BENCHMARKS / "run.py"), program, "--dry", "--output", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    name = {"gpu/check": "test-gpu", "gpu/bench": "bench-gpu"}[program]
    record = json.loads((folder / f"{name}.json").read_text())
    return done, {case["case"]: case for case in record["cases"]}, (folder / f"{name}.md").read_text()


def states(cases):
    return {case["state"] for case in cases.values()}


@pytest.mark.slow
def test_checks_end(tmp_path):
    done, cases, table = rehearse("gpu/check", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(cases) <= {"passed", "skipped"} and len(cases) > 30
    assert {case["part"] for case in cases.values()} == {
        "op tests 0",
        "model,beyond 2^31,older chips,sanitizer cuda,sanitizer triton",
    }
    assert "## Op tests" in table and "dry" in table.splitlines()[0]


@pytest.mark.slow
def test_benchmark_ends(tmp_path):
    done, cases, table = rehearse("gpu/bench", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(cases) == {"passed"} and next(iter(cases)) == "ceilings"
    arms = {row["arm"] for case in cases.values() for row in case["result"]["rows"]}
    assert {"modernbert_fast", "transformers sdpa", "torch.compile transformers sdpa", "torch.compile", "torch", "cpu",
            "parts: FlexAttention", "FlexAttention", "SDPA FLASH_ATTENTION", "linears alone"} <= arms  # fmt: skip
    missing = {name for case in cases.values() for name in case["result"].get("missing", {})}
    assert missing >= {"varlen_attn", "transformers flash_attention_2"}
    assert "not measured" in table


def test_what_fails_is_written_down_and_the_rest_runs(tmp_path):
    """An exception, a crash of the process and a hang: each costs its case only, and the exit status says so."""
    from gpu import session

    (tmp_path / "planted.py").write_text(PLANTED)
    command = (sys.executable, str(tmp_path / "planted.py"), str(BENCHMARKS))
    args = session.arguments("planted", None, 600.0).parse_args(["--dry", "--output", str(tmp_path), "--commit", "abc"])
    args.until = time.time() + 600
    assert session.run("planted", [session.Job("planted", command)], args) == 1
    record, table = json.loads((tmp_path / "planted.json").read_text()), (tmp_path / "planted.md").read_text()
    found = {case["case"]: case for case in record["cases"]}
    assert {name: case["state"] for name, case in found.items()} == {
        "wrong": "failed", "crashes": "failed", "skips": "skipped", "hangs": "failed", "fails": "failed",
        "right": "passed",
    }  # fmt: skip
    assert "ValueError: planted" in found["wrong"]["reason"] and "status 11" in found["crashes"]["reason"]
    assert "ended after 1 s" in found["hangs"]["reason"] and found["fails"]["reason"] == "b: beyond"
    assert "rival: not measured: no package" in table and "commit abc" in table
    assert table.index("## Failed") < table.index("## right")


def test_a_process_that_cannot_start_is_a_failure(tmp_path):
    from gpu import session

    args = session.arguments("broken", None, 60.0).parse_args(["--dry", "--output", str(tmp_path)])
    args.until = time.time() + 60
    assert session.run("broken", [session.Job("broken", (sys.executable, "-c", "import no_such_module"))], args) == 1
    (case,) = json.loads((tmp_path / "broken.json").read_text())["cases"]
    assert case["case"] == "broken as a whole" and "no_such_module" in case["reason"]


def test_time_that_is_over_is_written_down(tmp_path):
    from gpu import journal

    def right():
        raise AssertionError("not to be run")

    journal.work([journal.Case("late", right)], tmp_path / "journal", until=0.0)
    assert journal.read(tmp_path / "journal")["late"]["state"] == "not run"


def test_a_row_that_passed_nothing_is_a_failure():
    from gpu import check

    from modernbert_fast import dispatch

    cases = [
        {"op": op, "backend": row.backend, "state": "passed"} for op, rows in dispatch.TABLE.items() for row in rows
    ]
    assert not check.idle_rows(cases)
    idle = [{**case, "state": "skipped", "reason": "why"} if case["op"] == "geglu" else case for case in cases]
    assert check.idle_rows(idle) == {
        f"row {row.backend} of geglu": "passed no test: why"
        for row in dispatch.TABLE["geglu"]
        if row.backend in ("cuda", "triton")
    }


def geglu(rivals):
    """The passes of a small GeGLU, apart."""
    import harness

    from modernbert_fast.testing import problems

    problem = problems.geglu(9, 12, torch.float32, torch.device("cpu"))
    return harness, harness.apart("geglu", problem, problem, 1, rivals=rivals)


@pytest.mark.parametrize("backward", [False, True])
def test_a_wrong_arm_is_seen_in_both_passes(backward):
    harness, cases = geglu(lambda problem: {"wrong": lambda x: problem.plain(x) * 1.01, "right": problem.plain})
    harness.arm(cases[backward], "right").check(None)
    with pytest.raises(AssertionError):
        harness.arm(cases[backward], "wrong").check(None)


def test_the_row_that_is_timed_is_the_row_that_is_checked(monkeypatch):
    """Not the one that would be picked."""
    from modernbert_fast.reference import geglu as reference

    harness, cases = geglu(lambda problem: {})
    arm = harness.arm(cases[0], "reference")
    harness._yardstick(cases[0].checked)  # the truth is the reference's too: taken before it breaks
    monkeypatch.setattr(reference, "forward", lambda x: x[:, :12] * 2)
    with pytest.raises(AssertionError):
        arm.check(None)


def test_backward_alone_leaves_the_forward_outside():
    calls = []
    harness, cases = geglu(lambda problem: {"counted": lambda x: calls.append(1) or problem.plain(x)})
    arm = harness.arm(cases[1], "counted")
    first = arm.run()
    assert len(calls) == 1 and torch.equal(first[0], arm.run()[0])


class TestPredictions:
    """By hand: 12 heads of 64, 768 columns, 64k tokens in bfloat16."""

    C = 768

    @pytest.fixture
    def found(self):
        pytest.importorskip("triton")  # the tables of blocks stand beside the kernels
        from gpu import predict

        return {(p.model, p.length, p.what): p for p in predict.predictions(("base",), (512, 8192))}

    def test_row_ops_are_their_bytes(self, found):
        for what, passes in (("add and layer norm, forward", 4), ("layer norm, backward", 3), ("geglu, forward", 4.5)):
            prediction = found["base", 512, what]
            assert prediction.bytes == 2 * passes * self.C
            assert prediction.floor == prediction.predicted == pytest.approx(prediction.bytes / 4.3e12)

    def test_attention_counts_pairs_and_tiles(self, found):
        exact = found["base", 8192, "attention global, rotary inside, forward"]
        assert exact.flops == 4 * 8192 * self.C and exact.floor == pytest.approx(exact.flops / 790e12)
        window = found["base", 8192, "attention window 64, rotary inside, forward"]
        assert window.flops == pytest.approx(4 * self.C * (129 - 64 * 65 / 8192))
        assert window.bytes == 8 * self.C and window.floor == pytest.approx(window.bytes / 4.3e12)
        assert window.predicted < window.flash and window.predicted >= window.floor

    @pytest.mark.parametrize("own, step, keys", [(64, 64, 191.25), (128, 128, 380), (192, 128, 381)])
    def test_tiles_of_a_window(self, own, step, keys):
        from gpu import predict

        length = 8192
        found = predict.executed(own, step, 64, length) / length
        assert found == pytest.approx(keys, rel=0.02), "keys a query, as FlashAttention counts them"
        assert predict.executed(own, step, -1, 8192) >= 8192**2

    def test_whole_model(self):
        from gpu import predict

        from modernbert_fast.config import EncoderConfig

        flops = predict.encoder_flops(EncoderConfig.preset("base"), (512,) * 128) / 65536
        assert flops == pytest.approx(238.4e6, rel=1e-3)
