"""Triton rows beyond the op tests: who gets them, hostile bounds, bugs put in on purpose, every chip compiled for."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modernbert_fast import dispatch, library, ops
from modernbert_fast.dispatch import Call
from modernbert_fast.ops import padding
from modernbert_fast.testing import Guarded, checks, memory, problems

ROOT = Path(__file__).resolve().parents[1]
CPU, F32 = torch.device("cpu"), torch.float32
ROWS = {op: row for op, rows in dispatch.TABLE.items() for row in rows if row.backend == "triton"}
HEAD = {"attention": 64, "rope": 64}

pytest.importorskip("triton")
interpreted = pytest.mark.skipif(not library.interprets_triton(), reason="needs Triton's interpreter")


@pytest.mark.parametrize("op", ROWS)
def test_first_on_a_gpu_but_for_cuda_and_never_on_a_cpu_unless_forced(op):
    on_gpu = Call("cuda", frozenset({torch.bfloat16}), HEAD.get(op, 768), capability=(9, 0))
    before = [row.backend for row in dispatch.TABLE[op][: dispatch.TABLE[op].index(ROWS[op])]]
    assert before == (["cuda"] if op in ("attention", "layer_norm", "geglu") else [])
    assert not ROWS[op].objections(op, on_gpu)
    on_cpu = on_gpu._replace(device="cpu", dtypes=frozenset({F32}), capability=None)
    assert ROWS[op].objections(op, on_cpu) == ["runs on cuda, not on cpu"]
    assert dispatch.explain(op, on_cpu)[0][1]


@interpreted
@pytest.mark.parametrize("op", ROWS)
def test_interpreted_where_forced(op):
    call = Call("cpu", frozenset({F32}), HEAD.get(op, 768))
    assert not ROWS[op].objections(op, call, forced=True)
    if op == "padding":  # moves bytes, whatever they mean
        return
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
    assert kernels("launch").TILE == padding.TILE_ROWS


def kernels(op):
    return importlib.import_module(f"modernbert_fast.kernels.{op}")


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
    pooling, attention, maxsim = map(kernels, ("pooling", "attention", "maxsim"))
    entries = kernels("padding").tiles(cu_seqlens, T, 4)
    assert entries.shape == (T // 4 + len(bounds) - 1, 2) and entries.ge(-1).all() and entries.lt(T).all()
    for pairwise in (False, True):
        scores, argmax = maxsim.forward(x, x, cu_seqlens, cu_seqlens, pairwise, True)
        assert not scores.isnan().any() and argmax.ge(-1).all() and argmax.lt(T).all()
        wild = torch.full_like(argmax, bounds[1])
        maxsim.backward(torch.ones_like(scores), x, x, cu_seqlens, cu_seqlens, wild, pairwise)
    y, norm = pooling.forward(x, cu_seqlens, "mean", True)
    assert y.isfinite().all()
    pooling.backward(y, y, norm, cu_seqlens, "mean", True, T)
    positions, table = torch.full((T,), 2**31 - 1, dtype=torch.int32), torch.ones(3, D // 2)
    texts = len(bounds) - 1
    tiles = torch.tensor(
        [(0, 0), (texts - 1, 0), (texts, 0), (-5, 0), (0, 2**31 - 1), (0, -64), (0, 64)], dtype=torch.int32
    )
    for window, attended in ((-1, None), (2, None), (-1, positions > 0), (2, positions < 0)):
        geometry = (cu_seqlens, positions, table, table, None, attended, tiles, T, window, 1.0)
        attention.forward(qkv, *geometry)
        attention.backward(o, qkv, o, lse, *geometry)
    for name, guard in guards.items():
        guard.check(name)


WILD = [-1, 10, 2**31 - 1, -(2**31), 2**62]


@interpreted
@pytest.mark.parametrize("value", WILD)
def test_hostile_indices_and_labels_reach_nothing_outside(value):
    """Nor are they read before a launch: such a row is zero, or goes nowhere, and such a label costs NaN."""
    guards = {"x": Guarded(torch.ones(10, 8)), "weight": Guarded(torch.ones(10, 8))}
    x, weight = (guard.tensor for guard in guards.values())
    padding, cross_entropy = map(kernels, ("padding", "cross_entropy"))
    indices = torch.tensor([3, value, 0])
    assert torch.equal(padding.unpad(x, indices), torch.ones(3, 8).mul(torch.tensor([[1], [0], [1]])))
    assert padding.pad(x[:3], indices, 10).sum(1).tolist() == [8, 0, 0, 8, 0, 0, 0, 0, 0, 0]
    labels = torch.tensor([4, value, -100] + [-100] * 7)
    loss, lse = cross_entropy.forward(x, weight, None, labels, -100)
    assert loss.isnan().tolist() == [False, True] + [False] * 8
    cross_entropy.backward(loss, x, weight, None, labels, lse, -100, True, True, True)
    for name, guard in guards.items():
        guard.check(name)


@interpreted
@pytest.mark.parametrize(
    "T, bounds",
    [(10, (3, 7, 9)), (10, (0, 4, 4)), (10, (-5, 0)), (10, (20, 30)), (10, (6,)), (80, (4, 4)), (150, (73, 75))],
    ids=str,
)
def test_rows_that_bounds_leave_out_are_zero(T, bounds):
    """Before the first bound and from the last one on nothing is left of what was in memory."""
    H, D = 2, 8
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    first, last = (min(max(bound, 0), T) for bound in (bounds[0], bounds[-1]))
    outside = torch.ones(T, dtype=torch.bool)
    outside[first:last] = False
    x, qkv, do, lse = (torch.randn(shape) for shape in ((T, D), (T, 3, H, D), (T, H, D), (H, T)))
    found = {}
    with memory.poisoned():
        entries = kernels("padding").tiles(cu_seqlens, T, padding.TILE_ROWS)
        geometry = (cu_seqlens, None, None, None, None, None, entries, T, 2, 1.0)
        found["o"], lse = kernels("attention").forward(qkv, *geometry)
        found["lse"] = lse.t()
        found["dqkv"] = kernels("attention").backward(do, qkv, found["o"], lse, *geometry)
        pooled, norm = kernels("pooling").forward(x, cu_seqlens, "mean", True)
        found["pooled dx"] = kernels("pooling").backward(pooled, pooled, norm, cu_seqlens, "mean", True, T)
        scores, argmax = kernels("maxsim").forward(x, x, cu_seqlens, cu_seqlens, True, True)
        found["argmax"] = argmax + 1
        scores.fill_(1)
        found["dq"], found["dd"] = kernels("maxsim").backward(scores, x, x, cu_seqlens, cu_seqlens, argmax, True)
    for name, rows in found.items():
        assert rows[outside].eq(0).all(), name
        assert rows.isfinite().all(), name


class Waits(TorchDispatchMode):
    """Counts the calls that would make the host wait for a GPU, and names what else is called."""

    def __init__(self):
        super().__init__()
        self.count, self.seen = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


@interpreted
def test_the_host_waits_for_totals_only():
    """Once for the number of tokens, once for the number of labelled rows; for nothing else."""
    x, bounds, indices = torch.randn(6, 8), torch.tensor([0, 2, 6], dtype=torch.int32), torch.arange(6)
    padding, maxsim, cross_entropy, ranking = map(kernels, ("padding", "maxsim", "cross_entropy", "ranking"))
    loss = (x, x, None, indices)
    for call, expected in (
        (lambda: padding.plan(torch.ones(2, 3)), 1),
        (lambda: padding.pad(padding.unpad(x, indices), indices, 9), 0),
        (lambda: padding.tiles(bounds, 6, 4), 0),
        (lambda: maxsim.forward(x, x, bounds, bounds, False, True), 0),
        (lambda: ranking.forward(x, torch.arange(9), None, None, 3), 0),
        (lambda: maxsim.backward(x[:2, 0], x, x, bounds, bounds, indices.int(), True), 0),
        (lambda: cross_entropy.forward(*loss, -100), 1),
        (lambda: cross_entropy.backward(x[:, 0], *loss, x[:, 0], -100, True, True, True), 1),
    ):
        with Waits() as waits:
            call()
        assert waits.count == expected


@interpreted
@pytest.mark.parametrize("documents, launches", [(40, 2), (9000, 3)])
def test_the_best_documents_take_few_launches(monkeypatch, documents, launches):
    """Of the scores and of the ranking; torch launches nothing between them, and the host waits for nothing."""
    started, start = [], kernels("launch").start
    q, bounds, scales = torch.randn(3, 8), torch.arange(documents + 1, dtype=torch.int32), torch.rand(documents)
    d, cu_queries, allowed = q[:1].expand(documents, -1), bounds[::documents] * 3 // documents, scales > 0.5
    scores = torch.rand(1, documents)

    def counted(kernel, grid, *args, **options):
        started.append(kernel)
        if kernel is kernels("maxsim")._fwd_kernel:  # nine thousand programs would take long
            args[5].copy_(scores)
        else:
            start(kernel, grid, *args, **options)

    monkeypatch.setattr(kernels("launch"), "start", counted)
    monkeypatch.setattr("modernbert_fast.ops.checks.host_readable", lambda x: False)
    with dispatch.use_backend("triton", "maxsim", "ranking"), Waits() as waits:
        _, found = ops.maxsim_topk(q, d, cu_queries, bounds, 10, scales=scales, allowed=allowed)
    assert len(started) == launches and waits.count == 0
    names = {"maxsim_forward", "ranking_forward", "empty", "new_empty", "new_full", "copy_", "detach", "select"}
    assert waits.seen <= names
    assert found.tolist() == (scores * scales).where(allowed, -1).topk(10).indices.tolist()


def accurate(problem):
    return lambda: checks.check_accuracy(problem)


BATCH = (5, 1, 0, 70, 33)
WINDOW = accurate(problems.attention(BATCH, 1, 8, F32, CPU, window=8))
HOLES = accurate(problems.attention(BATCH, 1, 8, F32, CPU, window=8, holes=True))
GLOBAL = accurate(problems.attention(BATCH, 1, 8, F32, CPU))
EXPANDED, BLIND = (accurate(problems.attention(BATCH, 1, 8, F32, CPU, window=w, expanded=True)) for w in (-1, 2))
NORM = accurate(problems.layer_norm(40, 48, F32, CPU, residual=F32, weight=F32, bias=F32))
GEGLU = accurate(problems.geglu(9, 12, F32, CPU))
ROPE = accurate(problems.rope(9, 2, 8, F32, CPU))
POOLING, UNIT = (accurate(problems.pooling(BATCH, 12, F32, CPU, normalize=unit)) for unit in (False, True))


PAD = accurate(problems.pad(20, (6,), 13, F32, CPU))
LEFT = accurate(problems.plan(lambda draw: torch.arange(1030).expand(2, -1) >= torch.tensor([[0], [3]]), CPU))
TILES = accurate(problems.tiles((3, 0, 9, 4), 4, CPU))
MAXSIM = accurate(problems.maxsim((3, 1, 4), (70, 2, 7), 64, F32, CPU))
SHORT = accurate(problems.maxsim((3, 1, 4), (1, 2, 1), 16, F32, CPU))
SEARCH = accurate(problems.maxsim((33, 3), (70, 2, 7), 16, F32, CPU).but(grads=()))
RANKING = accurate(problems.ranking(2, 40, 9, F32, CPU, chosen=True))
LOSS, WORDS = (accurate(problems.cross_entropy(8, 64, V, F32, CPU, bias=False, labelled=1.0)) for V in (17, 5000))


def few_rows():
    """Logits of three rows at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels("launch"), "logits_rows", lambda V: 3)
        checks.check_accuracy(problems.cross_entropy(11, 64, 600, F32, CPU, labelled=1.0))


def ties():
    one = torch.tensor([0, 1], dtype=torch.int32)
    _, argmax = ops.maxsim(torch.ones(1, 4), torch.ones(130, 4), one, 130 * one, return_argmax=True)
    assert argmax.item() == 0


def far_rows():
    checks.check_rows_far_from_zero(CPU, 1e4, 1e-3, 768)


MUTANTS = [  # op, bug, what stands there, what the bug makes of it, the check that must see it
    ("attention", "window off by one", "<= window)", "<= window + 1)", lambda: checks.check_window(CPU, F32, 64)),
    ("attention", "a block short", "first + BLOCK + tl.minimum", "first + tl.minimum", WINDOW),
    ("attention", "columns ignored", "if columns_ptr is not None", "if False", HOLES),
    ("attention", "neighbours seen", "_keys(attended_ptr, t_n, end)", "_keys(attended_ptr, t_n, T)", GLOBAL),
    ("attention", "sums not shrunk", "total * shrink +", "total +", GLOBAL),
    ("attention", "expansion seen", "keys = keys & (tl.load", "keys = keys | (tl.load", EXPANDED),
    ("attention", "expansion gets gradients", "tl.where(is_key, dk1, 0.0)", "dk1", EXPANDED),
    ("attention", "nothing seen is not a number", "tl.where(total == 0, 1.0, total)", "total", BLIND),
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
    ("padding", "positions from column 0", "column - origin", "column", LEFT),
    ("padding", "blocks of a row overlap", "t += tl.max(rank, axis=0)", "t += 0", LEFT),
    ("padding", "rows without a token keep another's", "mask=held, other=0", "mask=(w < W)[None, :]", PAD),
    ("padding", "own tiles counted twice", "T, other < text)", "T, other <= text)", TILES),
    ("maxsim", "neighbours score", "better = ((s > best) | ((s != s) & (best == best)) | (at < 0)) & in_n",
     "better = (s > best) | ((s != s) & (best == best)) | (at < 0)", SHORT),
    ("maxsim", "neighbours score without winners", "tl.where(in_n, s, float(\"-inf\"))", "s", SEARCH),
    ("maxsim", "a document's last tile missed", "mask=(i < end - first)", "mask=(i < end - first - 64)", SEARCH),
    ("maxsim", "tokens beyond the first unit dropped", "static_range(BLOCK_M // UNIT)", "static_range(1)", SEARCH),
    ("maxsim", "a query of neither launch", "(end_m - start_m > ABOVE)", "(end_m - start_m > ABOVE + 1)", SEARCH),
    ("maxsim", "the last of equals wins", "(s > best)", "(s >= best)", ties),
    ("maxsim", "a block's winner kept", "where(better, (n + i_n)[:, None]", "where(at < 0, (n + i_n)[:, None]", MAXSIM),
    ("maxsim", "queries weighed alike", "other=0.0) * chosen", "other=0.0) * 0 + chosen", MAXSIM),
    ("ranking", "the later of equals wins", "(LOW - n.to(tl.int64))", "n.to(tl.int64)", RANKING),
    ("ranking", "found twice", "key = tl.where(key == top, NONE, key)", "key = key", RANKING),
    ("ranking", "documents without tokens found", "other=0) > start)", "other=0) >= start)", RANKING),
    ("ranking", "scales forgotten", "if scales_ptr is not None", "if False", RANKING),
    ("cross_entropy", "label not subtracted", "* share - one", "* share", LOSS),
    ("cross_entropy", "sums not shrunk", "total * tl.exp(peak - base) +", "total +", WORDS),
    ("cross_entropy", "lanes not brought together", "total * tl.exp(peak - base[:, None])", "total", LOSS),
    ("cross_entropy", "chunks not added up", "if i == 0", "if i >= 0", few_rows),
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
