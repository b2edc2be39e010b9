"""Triton rows beyond the op tests: who gets them, hostile bounds, bugs put in on purpose, every chip compiled for."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modernbert_fast import dispatch, library
from modernbert_fast.dispatch import Call
from modernbert_fast.ops import padding
from modernbert_fast.testing import Guarded, checks, problems

ROOT = Path(__file__).resolve().parents[1]
CPU, F32 = torch.device("cpu"), torch.float32
ROWS = {op: row for op, rows in dispatch.TABLE.items() for row in rows if row.backend == "triton"}
HEAD = {"attention": 64, "rope": 64}

pytest.importorskip("triton")
interpreted = pytest.mark.skipif(not library.interprets_triton(), reason="needs Triton's interpreter")


@pytest.mark.parametrize("op", ROWS)
def test_first_on_a_gpu_and_never_on_a_cpu_unless_forced(op):
    on_gpu = Call("cuda", frozenset({torch.bfloat16}), HEAD.get(op, 768), capability=(9, 0))
    assert dispatch.TABLE[op][0].backend == "triton" and not ROWS[op].objections(op, on_gpu)
    on_cpu = on_gpu._replace(device="cpu", dtypes=frozenset({F32}), capability=None)
    assert ROWS[op].objections(op, on_cpu) == ["runs on cuda, not on cpu"]
    assert dispatch.explain(op, on_cpu)[0][1]


@interpreted
@pytest.mark.parametrize("op", ROWS)
def test_interpreted_where_forced(op):
    call = Call("cpu", frozenset({F32}), HEAD.get(op, 768))
    assert not ROWS[op].objections(op, call, forced=True)
    (why,) = ROWS[op].objections(op, call._replace(dtypes=frozenset({torch.bfloat16})), forced=True)
    assert "truncates bfloat16" in why


@pytest.mark.parametrize("op", ROWS)
def test_turing_gets_what_does_not_multiply_tiles(op):
    call = Call("cuda", frozenset({torch.float16}), HEAD.get(op, 768), capability=(7, 5))
    objections = ROWS[op].objections(op, call)
    if "tl.dot(" in (ROOT / "kernels" / f"{op}.py").read_text():
        assert objections == ["needs compute capability 8.0 or later, not 7.5"]
    else:
        assert not objections


def test_tile_schedule_has_the_rows_that_kernels_expect():
    launch = importlib.import_module("modernbert_fast.kernels.launch")
    assert launch.TILE == padding.TILE_ROWS


HOSTILE = [
    (0, 5, 3, 10),
    (0, -1, 10),
    (0, 2**31 - 1, 10),
    (-(2**31), 4, 2**31 - 1),
    (9, 4, 10),
    (0, 4, 4),
    (20, 30, 40),
]


@interpreted
@pytest.mark.parametrize("bounds", HOSTILE, ids=str)
def test_hostile_bounds_reach_nothing_outside(bounds):
    """On a GPU bounds are not read before the launch: kernels hold them inside [0, T], or this process crashes."""
    T, H, D = 10, 1, 8
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    guards = {name: Guarded(torch.ones(shape)) for name, shape in
              {"x": (T, 8), "qkv": (T, 3, H, D), "o": (T, H, D), "lse": (H, T)}.items()}  # fmt: skip
    x, qkv, o, lse = (guard.tensor for guard in guards.values())
    pooling, attention = (importlib.import_module(f"modernbert_fast.kernels.{op}") for op in ("pooling", "attention"))
    y, norm = pooling.forward(x, cu_seqlens, "mean", True)
    assert y.isfinite().all()
    pooling.backward(y, y, norm, cu_seqlens, "mean", True, T)
    positions, table = torch.full((T,), 2**31 - 1, dtype=torch.int32), torch.ones(3, D // 2)
    texts = len(bounds) - 1
    tiles = torch.tensor(
        [(0, 0), (texts - 1, 0), (texts, 0), (-5, 0), (0, 2**31 - 1), (0, -64), (0, 64)], dtype=torch.int32
    )
    for window in (-1, 2):
        geometry = (cu_seqlens, positions, table, table, None, tiles, T, window, 1.0)
        attention.forward(qkv, *geometry)
        attention.backward(o, qkv, o, lse, *geometry)
    for name, guard in guards.items():
        guard.check(name)


def accurate(problem):
    return lambda: checks.check_accuracy(problem)


BATCH = (5, 1, 0, 70, 33)
WINDOW = accurate(problems.attention(BATCH, 1, 8, F32, CPU, window=8))
HOLES = accurate(problems.attention(BATCH, 1, 8, F32, CPU, window=8, holes=True))
GLOBAL = accurate(problems.attention(BATCH, 1, 8, F32, CPU))
NORM = accurate(problems.layer_norm(40, 48, F32, CPU, residual=F32, weight=F32, bias=F32))
GEGLU = accurate(problems.geglu(9, 12, F32, CPU))
ROPE = accurate(problems.rope(9, 2, 8, F32, CPU))
POOLING, UNIT = (accurate(problems.pooling(BATCH, 12, F32, CPU, normalize=unit)) for unit in (False, True))


def far_rows():
    checks.check_rows_far_from_zero(CPU, 1e4, 1e-3, 768)


MUTANTS = [  # op, bug, what stands there, what the bug makes of it, the check that must see it
    ("attention", "window off by one", "<= window)", "<= window + 1)", lambda: checks.check_window(CPU, F32, 64)),
    ("attention", "a block short", "first + BLOCK + tl.minimum", "first + tl.minimum", WINDOW),
    ("attention", "columns ignored", "if columns_ptr is not None", "if False", HOLES),
    ("attention", "neighbours seen", "in_n = t_n < end", "in_n = t_n < T", GLOBAL),
    ("attention", "sums not shrunk", "total * shrink +", "total +", GLOBAL),
    ("attention", "gradient not turned back", "cos, -sin", "cos, sin", GLOBAL),
    ("attention", "delta dropped", "dp - delta[None, :]", "dp", GLOBAL),
    ("layer_norm", "no mean correction", "centred - correction", "centred", far_rows),
    ("layer_norm", "rows of others summed", "tl.num_programs(0) * ROWS", "ROWS", NORM),
    ("layer_norm", "residual gradient dropped", "if dsum_ptr is not None", "if False", NORM),
    ("geglu", "swapped halves", "a * _cdf(a) * b", "b * _cdf(b) * a", GEGLU),
    ("geglu", "density dropped", "(cdf + a * pdf)", "cdf", GEGLU),
    ("rope", "turned backwards", "first * cos - second * sin", "first * cos + second * sin", ROPE),
    ("rope", "values turned too", "plane == 2", "plane == 3", ROPE),
    ("pooling", "mean of one row more", "tl.maximum(end - start, 1)", "(end - start + 1)", POOLING),
    ("pooling", "length's gradient dropped", "dpooled - y * tl.sum", "dpooled - 0 * tl.sum", UNIT),
]  # fmt: skip


@interpreted
@pytest.mark.parametrize("op, bug, right, wrong, check", [pytest.param(*m, id=f"{m[0]}-{m[1]}") for m in MUTANTS])
def test_bug_is_seen(monkeypatch, tmp_path, op, bug, right, wrong, check):
    source = (ROOT / "kernels" / f"{op}.py").read_text()
    assert right in source, "the kernel has changed: so must its mutant"
    (tmp_path / "broken.py").write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("modernbert_fast.kernels.broken", tmp_path / "broken.py")
    broken = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(broken)
    with dispatch.use_backend("triton", op):
        dispatch._pick.cache_clear()
        check()  # as it stands, it passes
        monkeypatch.setitem(
            dispatch.TABLE, op, (dispatch.Row("triton", lambda _: broken, devices=None), dispatch.TABLE[op][-1])
        )
        dispatch._pick.cache_clear()
        with pytest.raises(AssertionError):
            check()
    dispatch._pick.cache_clear()


def test_every_kernel_has_mutants():
    assert {m[0] for m in MUTANTS} == set(ROWS)


@pytest.mark.slow
def test_kernels_compile_for_chips_that_are_not_here():
    """Two of the chips, at ModernBERT-base's sizes; `make lint-kernels` compiles for all of them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "benchmarks/run.py", "compile_report", "--short", "--chips", "80", "90"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels compiled, 0 faults" in done.stdout
