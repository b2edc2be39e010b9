"""A run of many cases: its processes, watched and started again; its record and table, written after every case."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import torch
from gpu import journal, tables

from modernbert_fast import durable, timing

ROOT = harness.FOLDER.parent
GRACE = 15.0  # seconds that a case at hand gets beyond the end of the run
POLL = 0.5
RESTARTS = 25  # of one process


Missing = Callable[[list[dict[str, Any]]], dict[str, str]]


@dataclass(frozen=True)
class Job:
    """A process with a journal of its own.

    Attributes:
        name: of its journal.
        command: told where its journal is by the last two words that `run` adds: --journal FILE.
        environment: what it gets beyond this process's.
    """

    name: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


def arguments(program: str, description: str | None, budget: float) -> argparse.ArgumentParser:
    """What both runs take."""
    parser = argparse.ArgumentParser(prog=f"run.py {program}", description=description)
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU; so without a GPU")
    parser.add_argument("--budget", type=float, default=budget, help="seconds for all (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the record (default: benchmarks/results/<gpu>)")
    parser.add_argument("--commit", help="what this tree is a checkout of, where it has no .git")
    parser.add_argument("--only", default="", help="cases whose name contains one of these words, by comma")
    for hidden, kind in (("--part", str), ("--journal", Path), ("--until", float)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)  # this process is one of those watched
    return parser


def settle(args: argparse.Namespace) -> None:
    """Whether this is a rehearsal, and when it ends."""
    args.dry = args.dry or not torch.cuda.is_available()
    if args.dry:
        torch.set_num_threads(1)  # several would wait for each other
    args.until = args.until or time.time() + args.budget - GRACE


def selected(cases: Iterable[journal.Case], only: str) -> list[journal.Case]:
    """The cases whose name contains a word of `only`; all without."""
    words = [word for word in only.split(",") if word]
    return [case for case in cases if not words or any(word in case.name for word in words)]


def child(program: str, part: str, args: argparse.Namespace) -> tuple[str, ...]:
    """The command of a process that runs one part of the cases."""
    words = [sys.executable, str(harness.FOLDER / "run.py"), program, "--part", part, "--until", str(args.until)]
    words += ["--dry"] if args.dry else []
    return (*words, *(("--only", args.only) if args.only else ()))


def run(what: str, jobs: Sequence[Job], args: argparse.Namespace, missing: Missing | None = None) -> int:
    """Runs all jobs side by side and writes <what>.json and <what>.md; 1 if anything failed.

    Args:
        missing: from the cases at the end to what is wrong although no case says so, by name.
    """
    work = ROOT / "build" / "gpu-run" / f"{what}-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    folder = args.output or (ROOT / "build" / "dry" if args.dry else harness.RESULTS / harness.machine())
    facts = _facts(args)
    print(
        f"{what}: {'dry, on the CPU' if args.dry else facts['accelerators'][0]['name']}, {args.budget:.0f} s",
        flush=True,
    )
    stop = threading.Event()
    threads = [threading.Thread(target=_watch, args=(job, work, args.until, stop)) for job in jobs]
    for thread in threads:
        thread.start()
    try:
        record = _follow(what, jobs, threads, work, folder, facts, args.dry, missing)
    finally:
        stop.set()  # interrupted, or broken: no process may go on alone
    shutil.rmtree(work)
    print(tables.summary(record))
    print(folder / f"{what}.md")
    return 1 if any(case["state"] == "failed" for case in record["cases"]) else 0


def _follow(
    what: str,
    jobs: Sequence[Job],
    threads: Sequence[threading.Thread],
    work: Path,
    folder: Path,
    facts: dict[str, Any],
    dry: bool,
    missing: Missing | None,
) -> dict[str, Any]:
    """Writes the record whenever a case has ended, until all threads have; returns it."""
    began, shown = time.time(), 0
    while True:
        busy = any(thread.is_alive() for thread in threads)
        cases = _cases(jobs, work)
        if not busy and missing:
            cases += [{"case": n, "state": "failed", "reason": why, "part": what} for n, why in missing(cases).items()]
        ended = [case for case in cases if case["state"] != "started"]
        if len(ended) != shown or not busy:
            shown = len(ended)
            seconds = round(time.time() - began, 1)
            record = {"what": what, "dry": dry, "machine": facts, "seconds": seconds, "cases": cases}
            durable.write_json(folder / f"{what}.json", record)
            (folder / f"{what}.md").write_text(tables.markdown(record), encoding="utf-8")
        if not busy:
            return record
        time.sleep(POLL)


def _cases(jobs: Sequence[Job], work: Path) -> list[dict[str, Any]]:
    lines = [(job.name, line) for job in jobs for line in journal.read(work / f"{job.name}.jsonl").values()]
    return [{**line, "part": part} for part, line in lines if line["case"]]


def _watch(job: Job, work: Path, until: float, stop: threading.Event) -> None:
    """Keeps a job alive until it has finished, its time is over, or it cannot even start, or not often enough."""
    path, log = work / f"{job.name}.jsonl", work / f"{job.name}.log"
    for _ in range(RESTARTS):
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [*job.command, "--journal", str(path)],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PYTHONSAFEPATH": "1", **dict(job.environment)},  # `kernels/` lies in ROOT
                start_new_session=True,
            )
            why = _wait(process, path, until, stop)
        lines = journal.read(path)
        if "" in lines or stop.is_set():
            return
        end = f"{why or f'the process ended with status {process.returncode}'}: {_tail(log)}"
        running = next((line["case"] for line in lines.values() if line["state"] == "started"), None)
        if running is not None:
            journal.append(path, case=running, state="failed", reason=end)
        elif process.returncode != journal.UNWELL:
            break
        if time.time() > until + GRACE:
            return
    journal.append(path, case=f"{job.name} as a whole", state="failed", reason=end)


def _wait(process: subprocess.Popen, path: Path, until: float, stop: threading.Event) -> str:
    """Waits for the end, or brings it about; then why."""
    while process.poll() is None:
        now = time.time()
        running = [line for line in journal.read(path).values() if line["state"] == "started"]
        over = next((f"ended after {x['limit']:.0f} s" for x in running if now > x["since"] + x["limit"]), "")
        if not over and now > until + GRACE:
            over = f"ended: {journal.OVER_BUDGET}"
        if over or stop.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
            process.wait()
            return over
        time.sleep(POLL)
    return ""


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace").strip()[-800:]


def _facts(args: argparse.Namespace) -> dict[str, Any]:
    """Those of timing.py, and what else a GPU's numbers depend on."""
    facts = timing.machine_facts()
    facts["commit"] = args.commit or timing.git_commit(ROOT)
    return facts | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), **timing.driver_facts()}
