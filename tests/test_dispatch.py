"""The table: order, objections, forcing, and what may become a reason."""

import os
import subprocess
import sys
import types

import pytest
import torch

from modernbert_fast import dispatch, library, ops
from modernbert_fast.dispatch import Call, NoBackend, Row, use_backend


@pytest.fixture
def table(monkeypatch):
    """Replaces the rows of geglu for one test."""

    def replace(*rows):
        monkeypatch.setitem(dispatch.TABLE, "geglu", rows)
        dispatch._pick.cache_clear()

    yield replace
    monkeypatch.undo()
    dispatch._pick.cache_clear()


def backend(name, **limits):
    return Row(name, lambda op: types.SimpleNamespace(name=name), **{"devices": None, **limits})


CALL = Call("cpu", frozenset({torch.float32}), 64)


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_reference_is_last_and_serves_everything(op):
    *others, last = dispatch.TABLE[op]
    assert last.backend == "reference"
    assert "reference" not in [row.backend for row in others]
    for device in ("cpu", "cuda", "meta"):
        for dtype in dispatch.FLOATS:
            assert last.objections(op, Call(device, frozenset({dtype}), 7, frozenset({"anything"}))) == []


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_rows_are_named_once_and_known(op):
    names = [row.backend for row in dispatch.TABLE[op]]
    assert len(set(names)) == len(names)
    assert set(names) <= set(dispatch.BACKENDS)


def test_first_row_without_objection_runs(table):
    table(backend("cuda", devices=("cuda",)), backend("triton", widths=(32,)), backend("cpu"), backend("reference"))
    assert dispatch.pick("geglu", CALL).name == "cpu"


@pytest.mark.parametrize(
    "limits, words",
    [
        ({"devices": ("cuda", "xpu")}, "runs on cuda or xpu, not on cpu"),
        ({"dtypes": dispatch.HALF}, "does not take float32"),
        ({"widths": range(32)}, "does not take width 64"),
        ({"cannot": ("holes",)}, "does not do holes"),
        ({"cpu_flags": ((torch.float32, ("no_such_flag",)),)}, "this CPU has no no_such_flag"),
    ],
)
def test_objections_are_sentences(limits, words):
    call = Call("cpu", frozenset({torch.float32}), 64, frozenset({"holes"}))
    (objection,) = backend("cpu", **limits).objections("geglu", call)
    assert words in objection


def test_forced_backend_never_falls_back(table):
    table(backend("cuda", devices=("cuda",)), backend("reference"))
    with use_backend("cuda"), pytest.raises(NoBackend, match="runs on cuda, not on cpu"):
        dispatch.pick("geglu", CALL)
    with use_backend("triton"), pytest.raises(NoBackend, match="triton: has no row for geglu .*cuda, reference"):
        dispatch.pick("geglu", CALL)
    assert dispatch.pick("geglu", CALL).name == "reference"


def test_use_backend_nests_and_ends(table):
    table(backend("cpu"), backend("reference"))
    with use_backend("reference", "geglu"):
        with use_backend(None, "geglu"):
            assert dispatch.pick("geglu", CALL).name == "cpu"
        with pytest.raises(RuntimeError), use_backend("cpu"):
            raise RuntimeError
        assert dispatch.pick("geglu", CALL).name == "reference"
    assert dispatch.pick("geglu", CALL).name == "cpu"


@pytest.mark.parametrize("arguments, words", [(("cudnn",), "cudnn"), (("cpu", "gelu"), "gelu")])
def test_unknown_names_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words), use_backend(*arguments):
        pass


def test_only_import_errors_are_reasons(table):
    def missing(op):
        raise ImportError("no such compiler")

    def buggy(op):
        raise AttributeError("a typo")

    table(Row("triton", missing, devices=None), backend("reference"))
    assert dispatch.pick("geglu", CALL).name == "reference"
    assert dispatch.explain("geglu", CALL) == [("triton", ["no such compiler"]), ("reference", [])]
    table(Row("triton", buggy, devices=None), backend("reference"))
    with pytest.raises(AttributeError):
        dispatch.pick("geglu", CALL)


def test_choice_is_made_inside_the_op(table):
    """A compiled graph follows a backend that is forced later."""
    calls = []
    broken = types.SimpleNamespace(forward=lambda x: calls.append(1) or torch.zeros(x.shape[0], x.shape[1] // 2))
    table(Row("cpu", lambda op: broken, devices=None), dispatch.TABLE["geglu"][-1])
    x = torch.randn(3, 8)
    with use_backend("reference"):
        compiled = torch.compile(ops.geglu, fullgraph=True, backend="aot_eager")
        compiled(x)
    assert not calls
    compiled(x)
    assert calls


@pytest.mark.parametrize("name, code", [("reference", 0), ("nonsense", 1)])
def test_environment_forces(name, code):
    program = "from modernbert_fast import dispatch as d; assert d._forced == dict.fromkeys(d.TABLE, 'reference')"
    environment = {**os.environ, "MODERNBERT_FAST_BACKEND": name}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert bool(done.returncode) == bool(code), done.stderr
    if code:
        assert "nonsense" in done.stderr


def test_a_row_leaves_a_dtype_unless_it_is_forced(table, monkeypatch):
    table(backend("cpu", leaves=((torch.float32, ("avx512_bf16",)),)), backend("reference"))
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    assert dispatch.pick("geglu", CALL).name == "reference"
    assert "faster in a row below" in dispatch.explain("geglu", CALL)[0][1][0]
    with dispatch.use_backend("cpu"):
        assert dispatch.pick("geglu", CALL).name == "cpu"
    dispatch._pick.cache_clear()
    monkeypatch.setattr(library, "cpu_flags", frozenset)
    assert dispatch.pick("geglu", CALL).name == "cpu"
