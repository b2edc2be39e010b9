"""Cases of a long run, each written down the moment it starts and the moment it ends.

A journal is a file of JSON lines that its process appends to: a case is "started", then "passed", "failed" or
"skipped"; or it is "not run". A crash, a hang or a kill costs the case at hand: the next process on the same journal
goes on after it.
"""

from __future__ import annotations

import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modernbert_fast import timing

LIMIT = 60.0  # seconds of a case
UNWELL = 3  # exit status of a process whose accelerator answers no more
OVER_BUDGET = "the time for the whole run was over"


class Skip(Exception):
    """Why a case does not run here: written down, and no failure."""


@dataclass(frozen=True)
class Case:
    """What can fail alone.

    Attributes:
        name: unique in its run.
        run: gives what is to be written down, as JSON values; under "failures" whatever must fail the run.
        limit: seconds after which the process is ended.
    """

    name: str
    run: Callable[[], Any]
    limit: float = LIMIT


def append(path: Path, **line: Any) -> None:
    """One line, on disk when this returns."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of every case, in the order in which they started; the end of a process is "" -> its line."""
    found: dict[str, dict[str, Any]] = {}
    if path.exists():
        for text in path.read_text(encoding="utf-8").split("\n")[:-1]:  # what has no end yet is still being written
            line = json.loads(text)
            found[line["case"]] = found.get(line["case"], {}) | line
    return found


def start(path: Path, name: str, limit: float, **facts: Any) -> None:
    append(path, case=name, state="started", since=time.time(), limit=limit, **facts)


def finish(path: Path) -> None:
    """Says that nothing is left to do."""
    append(path, case="", state="finished")


def work(cases: Iterable[Case], path: Path, until: float) -> None:
    """Runs every case that the journal does not have. Ends the process when the accelerator is lost.

    Args:
        until: time.time() after which nothing is started.
    """
    done = read(path)
    for case in cases:
        if case.name in done:
            continue
        if time.time() > until:
            append(path, case=case.name, state="not run", reason=OVER_BUDGET)
            continue
        start(path, case.name, case.limit)
        began = time.perf_counter()
        outcome = _outcome(case)
        append(path, case=case.name, seconds=round(time.perf_counter() - began, 3), **outcome)
        if outcome["state"] == "failed":
            leave_if_unwell()
        _clear()
    finish(path)


def leave_if_unwell() -> None:
    """Ends this process if its accelerator no longer answers: after an illegal access every call fails."""
    try:
        timing.synchronize()
    except RuntimeError:
        os._exit(UNWELL)


def reason_of(error: BaseException) -> str:
    """The kind of a failure, its words, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}"[:2000] + where


def _clear() -> None:
    """Gives the case's memory back. What then is alive, modules above all, need not be looked through again."""
    gc.collect()
    gc.freeze()
    torch.cuda.empty_cache()


def _outcome(case: Case) -> dict[str, Any]:
    try:
        result = case.run()
    except Skip as skip:
        return {"state": "skipped", "reason": str(skip)}
    except Exception as error:  # whatever it is, it is written down and the next case runs
        return {"state": "failed", "reason": reason_of(error)}
    if isinstance(result, dict) and (failures := result.get("failures")):
        return {"state": "failed", "reason": "; ".join(f"{n}: {why}" for n, why in failures.items()), "result": result}
    return {"state": "passed", "result": result}
