"""compute-sanitizer over the small problems: accesses out of bounds, races, unwritten memory, divergent barriers."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import harness
from gpu.journal import Case, Skip
from gpu.sizes import Sizes

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 77  # exit status when the tool has found something
SECONDS = 150.0


def cases(backend: str, sizes: Sizes) -> Iterator[Case]:
    """Every tool on a backend of ours."""
    for tool in TOOLS[: 1 if sizes.dry else None]:
        yield Case(f"compute-sanitizer {tool}, {backend}", functools.partial(check, tool, backend, sizes), SECONDS)


def check(tool: str, backend: str, sizes: Sizes) -> dict[str, str]:
    """What the program printed last; a finding of the tool is an AssertionError with its words."""
    program = [sys.executable, str(harness.FOLDER / "run.py"), "gpu/small", backend]
    environment = dict(os.environ)
    if not sizes.dry:
        sanitizer = _find()
        if sanitizer is None:
            raise Skip("compute-sanitizer is neither on PATH nor in CUDA_HOME/bin or /usr/local/cuda/bin")
        program = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20", *program]
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # every tensor is an allocation with its own bounds
    done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=SECONDS - 5)
    printed = done.stdout.strip().splitlines()
    repeated, races = _races(done.stdout) if tool == "racecheck" and backend == "triton" else ((), ())
    explained = done.returncode == FOUND and repeated and not races
    assert explained or done.returncode == 0, f"status {done.returncode}: {(done.stdout + done.stderr).strip()[-1500:]}"
    return {"printed": printed[-1], **({"repeated writes": sorted(repeated)} if repeated else {})}


def _races(printed: str) -> tuple[set[str], set[str]]:
    """Races that are one instruction writing twice, and all others.

    Triton hands a tensor that has fewer elements than the program has threads to several of them: where such a tensor
    goes through shared memory, they write the same number to the same place. The bits are held by the op tests.
    """
    found = re.findall(r"Race reported between (\w+) access at (.+)\n=+ +and (\w+) access at (.+?) \[", printed)
    same = {one for first, one, second, other in found if first == second == "Write" and one == other}
    return same, {f"{one} and {other}" for _, one, _, other in found} - {f"{one} and {one}" for one in same}


def _find() -> str | None:
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    beside = [str(Path(home, "bin")) for home in homes if home]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *beside]))
