"""The op tests on every instruction set that was built and that this CPU has; tests/ops itself runs the best one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modernbert_fast import library

ROOT = Path(__file__).resolve().parents[1]
ISAS = ("avx512", "avx2", "baseline")
# What concerns the numbers; registration, tracing and error texts are the same for all.
NUMBERS = "accuracy or isolation or tiles or far_from_zero or window or beyond"


@pytest.mark.parametrize("isa", ISAS)
def test_ops(isa):
    if library.isa() in (isa, "none"):
        pytest.skip("tests/ops asks it" if library.isa() == isa else "_ops_cpu.so was not built")
    environment = {**os.environ, "MODERNBERT_FAST_ISA": isa, "OMP_NUM_THREADS": "1"}
    known = [sys.executable, "-c", "from modernbert_fast import library; library.isa()"]
    if "does not support" in subprocess.run(known, env=environment, capture_output=True, text=True).stderr:
        pytest.skip(f"this CPU has no {isa}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/ops"]
    command += ["-k", f"cpu-cpu and ({NUMBERS})"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:] + done.stderr[-4000:]
