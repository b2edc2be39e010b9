"""The CUDA kernels without a GPU: the host executor of tests/simt runs them, under sanitizers, through the op tests."""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SIMT = ROOT / "tests" / "simt"
BUILD = ROOT / "build" / "simt"

_spec = importlib.util.spec_from_file_location("bugs", SIMT / "bugs.py")
bugs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bugs)

MISSING = [tool for tool in ("cmake", "ninja", "g++") if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the executor switches stacks in x86-64 assembly"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]


def run(*command, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(word) for word in command], cwd=SIMT, env=os.environ | environment, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder of what CMake built; what is already there and has not changed is kept."""
    bugs.write(BUILD / "bugs")
    torch_folder = Path(torch.__file__).parent
    options = ["-G", "Ninja", "-DCMAKE_CXX_COMPILER=g++", f"-DTORCH={torch_folder}", f"-DBUGS={BUILD / 'bugs'}"]
    for command in (["cmake", "-S", SIMT, "-B", BUILD, *options], ["cmake", "--build", BUILD]):
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    return BUILD


@pytest.fixture(scope="session")
def environment(built) -> dict[str, str]:
    """ASan comes first into the process; what is allocated is full of NaN."""
    libraries = [run("g++", f"-print-file-name={name}.so").stdout.strip() for name in ("libasan", "libstdc++")]
    return {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:max_malloc_fill_size=100000000:malloc_fill_byte=255",
        "MODERNBERT_FAST_CUDA_ON_HOST": str(built / "_ops_cuda_on_host.so"),
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.slow
def test_op_tests_on_the_executor(environment):
    """All that tests/ops asks of the cuda rows, and test_kernels.py; a skip counts as a failure."""
    # gradcheck is for rows that take float64; tails touch pages that ASan watches already.
    which = "(cuda-cpu or test_kernels) and not test_gradients"
    done = run(
        sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", "--require", "cuda",
        "-k", which, ROOT / "tests" / "ops", SIMT / "test_kernels.py", **environment,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    last = done.stdout.strip().splitlines()[-1]
    assert "passed" in last and "skipped" not in last
    assert int(re.search(r"(\d+) passed", last)[1]) > 500


@pytest.fixture(scope="session")
def answers(built, environment) -> dict[str, list[str]]:
    done = run(sys.executable, SIMT / "bugs.py", built / "_ops_cuda_on_host.so", built, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", bugs.BUGS)
def test_bug_is_seen(answers, name):
    without, with_bug = answers[name]
    assert without == "passed"
    assert re.search("AssertionError|RuntimeError|AddressSanitizer|runtime error|ended without", with_bug), with_bug


PROBES = {  # what probe.cu holds, and what the executor must say of it
    "reversed": "fine",
    "lanes": "fine",
    "product half 8": "fine",
    "product half 16": "fine",
    "product bfloat16 16": "fine",
    "conversions half": "fine",
    "conversions bfloat16": "fine",
    "divergent barrier": "stands still: 64 of 128 threads have returned, thread 63 waits at sync_block",
    "divergent lanes": "is at shuffle.*, lanes of its warp at shuffle",
    "lane left out": "4 of 128 threads have returned, thread 127 waits at shuffle_xor",
    "missing barrier": "NaN",
    "missing warp barrier": "NaN",
    "uninitialised": "NaN",
    "missing wait": "NaN",
    "beyond shared": "AddressSanitizer: use-after-poison",
    "beyond global": "AddressSanitizer: heap-buffer-overflow",
    "misaligned": "store to misaligned address",
    "ldmatrix off": "ldmatrix_x2 at byte .* not a multiple of 16",
    "too much shared": "no GPU has so much shared memory",
    "not whole warps": "blocks must be whole warps",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBES)
def test_executor_says(built, name):
    done = run(built / "probe", name, ASAN_OPTIONS="detect_leaks=0")
    assert re.search(PROBES[name], done.stdout + done.stderr), done.stdout + done.stderr
    assert (done.returncode == 0) == (PROBES[name] == "fine")
