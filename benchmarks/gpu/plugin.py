"""For pytest: writes every test into a journal, takes a share of them, and leaves when the GPU is lost."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gpu import journal  # noqa: E402

FEW = 24  # tests of a dry run
LIMIT = 150.0  # seconds of a test, which may have Triton compile a dozen kernels


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--journal", type=Path)
    parser.addoption("--share", default="0/1", help="I/N: the I-th of every N tests")
    parser.addoption("--until", type=float)
    parser.addoption("--few", action="store_true", help=f"{FEW} tests, spread over all")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Journalist(config), "journalist")


class _Journalist:
    def __init__(self, config: pytest.Config):
        self.path, self.until, self.few = (config.getoption(name) for name in ("journal", "until", "few"))
        self.share, self.shares = map(int, config.getoption("share").split("/"))
        self.outcome: dict[str, Any] = {}
        self.seconds = 0.0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Bfloat16 first, which nothing but a GPU judges; rows of the CPU are tested elsewhere."""
        done = journal.read(self.path)
        kept = [item for item in items if self.few or _params(item).get("device") != "cpu"]
        if self.few:
            kept = [item for item in kept if not any(mark.name == "skip" for mark in item.iter_markers())]
            kept = kept[:: max(len(kept) // FEW, 1)]
        kept.sort(key=lambda item: str(_params(item).get("dtype")) != "torch.bfloat16")
        items[:] = [item for item in kept[self.share :: self.shares] if item.nodeid not in done]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        facts = _facts(item)
        if time.time() > self.until:
            journal.append(self.path, case=item.nodeid, state="not run", reason=journal.OVER_BUDGET, **facts)
            return True
        journal.start(self.path, item.nodeid, LIMIT, **facts)
        self.outcome, self.seconds = {"state": "passed"}, 0.0
        return None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds += report.duration
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.outcome = {"state": "failed", "reason": (crash.message if crash else str(report.longrepr))[:2000]}
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.outcome = {"state": "skipped", "reason": reason.removeprefix("Skipped: ")}
        if report.when == "teardown":
            journal.append(self.path, case=report.nodeid, seconds=round(self.seconds, 3), **self.outcome)
            if self.outcome["state"] == "failed":
                journal.leave_if_unwell()

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
            journal.finish(self.path)


def _params(item: pytest.Item) -> dict[str, Any]:
    callspec = getattr(item, "callspec", None)
    return callspec.params if callspec else {}


def _facts(item: pytest.Item) -> dict[str, str]:
    params = _params(item)
    op = params.get("op") or getattr(item.module, "OP", "every op")  # type: ignore[attr-defined]
    dtype = str(params.get("dtype", "–")).removeprefix("torch.")
    return {"op": op, "backend": params.get("backend", "–"), "dtype": dtype}
