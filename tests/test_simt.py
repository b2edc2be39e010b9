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

from modernbert_fast import dispatch, library

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


def ask(which: str, environment: dict[str, str]) -> int:
    """Runs the tests of the cuda rows as far as `which` selects them; how many passed.

    Rows may leave a width or a dtype to others, but a row that is not here at all is a failure.
    """
    done = run(
        sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", "-rs",
        "-k", f"(cuda-cpu or kernels) and {which}", ROOT / "tests" / "ops", *sorted(SIMT.glob("test_*.py")),
        **environment,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert not re.search("runs on cuda|does not load|was not built", done.stdout), done.stdout[-8000:]
    return int(re.search(r"(\d+) passed", done.stdout)[1])


@pytest.fixture(scope="session")
def races(built) -> dict[str, str]:
    """The same kernels with every access to shared memory watched: no two threads meet at a byte unordered."""
    return {"MODERNBERT_FAST_CUDA_ON_HOST": str(built / "_ops_cuda_races.so"), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_op_tests_on_the_executor(environment):
    """All that tests/ops asks of the cuda rows, under ASan and UBSan; gradcheck is for rows that take float64."""
    assert ask("not test_gradients and not attention", environment) > 500


@pytest.mark.slow
def test_no_races(races):
    which = "(test_accuracy or test_residual or test_plan or test_tiles or test_kernels)"
    assert ask(f"{which} and not offsets and not blocks and not attention", races) > 200


# Each family of chips; all that tests/ops asks, but for batches of many tokens.
CHIPS = [("80", "attention"), ("75", "attention and not bfloat16")]


@pytest.mark.slow
@pytest.mark.parametrize("chip, which", CHIPS)
def test_attention_on_the_executor(environment, chip, which):
    assert ask(f"{which} and not test_gradients", environment | {"MODERNBERT_FAST_SM": chip}) > 90


@pytest.mark.slow
@pytest.mark.parametrize("chip, which", CHIPS)
def test_no_races_in_attention(races, chip, which):
    which += " and (test_accuracy or test_holes)"
    assert ask(which, races | {"MODERNBERT_FAST_SM": chip}) > 15


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


OPS = [op for op, rows in dispatch.TABLE.items() if any(row.backend == "cuda" for row in rows)]


@pytest.mark.parametrize("op", OPS)
def test_who_gets_the_cuda_row(monkeypatch, op):
    """GPUs from Turing on; a CPU tensor only where the row is forced and the host runs it."""
    (row,) = (row for row in dispatch.TABLE[op] if row.backend == "cuda")
    call = dispatch.Call("cuda", frozenset({torch.float16}), 64, capability=(7, 5))
    assert not [why for why in row.objections(op, call) if "_ops_cuda" not in why]
    assert row.objections(op, call._replace(capability=(7, 0))) == ["needs compute capability 7.5 or later, not 7.0"]
    on_cpu = call._replace(device="cpu", capability=None)
    monkeypatch.setattr(library, "CUDA_ON_HOST", "")
    assert row.objections(op, on_cpu, forced=True) == ["runs on cuda, not on cpu"]
    monkeypatch.setattr(library, "CUDA_ON_HOST", "somewhere")
    assert row.objections(op, on_cpu) == ["runs on cuda, not on cpu"]
    assert "runs on cuda" not in str(row.objections(op, on_cpu, forced=True))


def test_turing_multiplies_no_bfloat16():
    (row,) = (row for row in dispatch.TABLE["attention"] if row.backend == "cuda")
    call = dispatch.Call("cuda", frozenset({torch.bfloat16}), 64, capability=(7, 5))
    assert "needs compute capability 8.0 or later for bfloat16, not 7.5" in row.objections("attention", call)
    assert "compute capability" not in str(row.objections("attention", call._replace(capability=(8, 0))))


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
    "ldmatrix off": "ldmatrix_x4 at byte .* not a multiple of 16",
    "too much shared": "no GPU has so much shared memory",
    "not whole warps": "blocks must be whole warps",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBES)
def test_executor_says(built, name):
    done = run(built / "probe", name, ASAN_OPTIONS="detect_leaks=0")
    assert re.search(PROBES[name], done.stdout + done.stderr), done.stdout + done.stderr
    assert (done.returncode == 0) == (PROBES[name] == "fine")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PROBES if PROBES[name] == "fine" or name.startswith("missing")])
def test_races_are_named(built, name):
    done = run(built / "probe_races", name)
    unordered = name in ("missing barrier", "missing warp barrier")
    said = r"thread \d+: (reads|writes) byte .* with no barrier between" if unordered else PROBES[name]
    assert re.search(said, done.stdout), done.stdout + done.stderr
