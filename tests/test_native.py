"""The compiled operators themselves: numbers on each instruction set, error texts, layouts and linkage.

tests/ops/ compares backends op by op; this file needs torch and the built libraries only.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

PACKAGE = Path(importlib.util.find_spec("modernbert_fast").submodule_search_locations[0])
LIBRARY = PACKAGE / "_ops_cpu.so"
if not LIBRARY.is_file():
    pytest.skip("_ops_cpu.so was not built", allow_module_level=True)

torch.ops.load_library(LIBRARY)
ops = torch.ops.modernbert_fast_C

EPS = 1e-5
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ISAS = ["baseline", "avx2", "avx512"]
WIDTHS = [1, 2, 3, 7, 8, 9, 31, 33, 64, 127, 768, 1024, 1025, 4097]


@pytest.fixture(autouse=True)
def one_thread():
    """The inputs are small: on a busy machine a second thread costs far more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sliced(x: torch.Tensor) -> torch.Tensor:
    """x as a view into a larger tensor: strided rows that start one element off."""
    wide = torch.full((x.shape[0], x.shape[1] + 5), float("nan"), dtype=x.dtype)
    wide[:, 1:-4] = x
    return wide[:, 1:-4]


def truth(x, weight=None, bias=None, eps=EPS):
    """Layer norm in float64: y, mean, rstd."""
    x = x.double()
    mean = x.mean(-1)
    centred = x - mean[:, None]
    rstd = (centred.square().mean(-1) + eps).rsqrt()
    y = centred * rstd[:, None]
    y = y if weight is None else y * weight.double()
    return (y if bias is None else y + bias.double()), mean, rstd


def tolerance(y: torch.Tensor, dtype: torch.dtype, fp32_error: float = 2e-6) -> torch.Tensor:
    """Element by element: one rounding of the output, and fp32 arithmetic before it."""
    return torch.finfo(dtype).eps * y.abs() * (dtype != torch.float32) + fp32_error * (1 + y.abs())


def in_process(isa: str, script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a script with the library loaded as `ops` and an instruction set forced."""
    prelude = f"import sys, numpy, torch\ntorch.ops.load_library({str(LIBRARY)!r})\nops = torch.ops.modernbert_fast_C\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + script, *arguments],
        env={**os.environ, "MODERNBERT_FAST_ISA": isa}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("C", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_forward(dtype, C):
    torch.manual_seed(C)
    x = sliced((torch.randn(7, C) * 3 + 1).to(dtype))
    weight, bias = torch.randn(C).to(dtype), torch.randn(C)
    y, sum, mean, rstd = ops.layer_norm_forward(x, None, weight, bias, EPS)
    expected, mean_64, rstd_64 = truth(x, weight, bias)
    assert y.dtype == dtype and y.is_contiguous() and sum.shape == (0,) and sum.dtype == dtype
    assert ((y.double() - expected).abs() <= tolerance(expected, dtype, 4e-6)).all()
    torch.testing.assert_close(mean.double(), mean_64, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rstd.double(), rstd_64, rtol=1e-5, atol=0)


@pytest.mark.parametrize("C", [1, 9, 768, 1025])
@pytest.mark.parametrize("residual_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_layer_norm(dtype, residual_dtype, C):
    if residual_dtype not in (dtype, torch.float32):
        return
    torch.manual_seed(C)
    x, residual = sliced(torch.randn(6, C).to(dtype)), sliced((torch.randn(6, C) * 4).to(residual_dtype))
    y, sum, _, _ = ops.layer_norm_forward(x, residual, None, None, EPS)
    assert torch.equal(sum, x + residual)
    expected = truth(sum)[0]
    assert y.dtype == residual_dtype
    assert ((y.double() - expected).abs() <= tolerance(expected, residual_dtype, 4e-6)).all()


@pytest.mark.parametrize("C", [768, 1024, 1025])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4, 1e6, 1e7])
def test_offset_rows(mean, spread, C):
    """Rows far from zero, where plain two-pass is wrong in the first digit."""
    torch.manual_seed(0)
    x = mean * np.pi / 3 + spread * torch.randn(8, C)
    y, _, _, _ = ops.layer_norm_forward(x, None, None, None, EPS)
    assert (y.double() - truth(x)[0]).abs().max() <= (1e-6 if mean < 1e7 else 2e-6)


@pytest.mark.parametrize("C", [1, 5, 64, 768, 1025])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_backward(dtype, offset, C):
    torch.manual_seed(C)
    x = sliced((torch.randn(131, C) + offset).to(dtype))  # three blocks of rows, the last one ragged
    dy, dsum = sliced(torch.randn(131, C).to(dtype)), sliced(torch.randn(131, C).to(dtype))
    weight = torch.randn(C).to(dtype)
    _, _, mean, rstd = ops.layer_norm_forward(x, None, weight, None, EPS)
    dx, dweight, dbias = ops.layer_norm_backward(dy, dsum, x, weight, True, mean, rstd)

    normed, _, rstd_64 = truth(x)
    dnormed = dy.double() * weight.double()
    projection = (dnormed * normed).mean(-1, keepdim=True)
    expected = rstd_64[:, None] * (dnormed - dnormed.mean(-1, keepdim=True) - normed * projection) + dsum.double()
    scale = 1 + rstd_64[:, None] * dnormed.abs().amax(-1, keepdim=True)
    assert dx.dtype == dtype
    assert ((dx.double() - expected).abs() <= tolerance(expected, dtype) + 4e-6 * scale).all()
    for got, want in ((dweight, (dy.double() * normed).sum(0)), (dbias, dy.double().sum(0))):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-4)

    alone, none_weight, none_bias = ops.layer_norm_backward(dy, None, x, None, False, mean, rstd)
    assert alone.shape == x.shape and none_weight.shape == none_bias.shape == (0,)


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_embed_layer_norm_is_gather_then_norm(dtype, ids_dtype):
    torch.manual_seed(0)
    table, weight = sliced(torch.randn(50, 97).to(dtype)), torch.randn(97)
    ids = torch.randint(0, 50, (64,), dtype=ids_dtype)
    got = ops.layer_norm_embed_forward(ids[::2], table, weight, None, EPS)
    y, _, mean, rstd = ops.layer_norm_forward(table[ids[::2].long()], None, weight, None, EPS)
    for result, expected in zip(got, (y, mean, rstd), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(dtype):
    x = torch.empty(0, 96, dtype=dtype)
    y, sum, mean, rstd = ops.layer_norm_forward(x, x, torch.ones(96), None, EPS)
    assert y.shape == sum.shape == (0, 96) and mean.shape == rstd.shape == (0,)
    dx, dweight, dbias = ops.layer_norm_backward(x, None, x, torch.ones(96), True, mean, rstd)
    assert dx.shape == (0, 96) and not dweight.any() and not dbias.any()
    indices, cu_seqlens, positions = ops.padding_plan(torch.zeros(0, 5, dtype=torch.bool))
    assert indices.shape == positions.shape == (0,) and cu_seqlens.tolist() == [0]
    assert ops.padding_tiles(cu_seqlens, 0, 16).shape == (0, 2)


def test_nan_and_infinity_stay_in_their_row():
    x = torch.randn(4, 100)
    clean = ops.layer_norm_forward(x, None, None, None, EPS)[0]
    for value in (float("nan"), float("inf")):
        for dtype in DTYPES:
            dirty = x.to(dtype)
            dirty[1, 99] = value
            y = ops.layer_norm_forward(dirty, None, None, None, EPS)[0]
            assert y[1].isnan().all() and y[[0, 2, 3]].isfinite().all()
    assert clean.isfinite().all()


def test_half_precision_conversions_are_exact():
    """Every 16-bit pattern survives x + 0, and fp32 sums round as torch rounds them."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(64, 1024)
    for dtype in (torch.bfloat16, torch.float16):
        x = patterns.view(dtype)
        total = ops.layer_norm_forward(x, torch.zeros_like(x), None, None, EPS)[1]
        torch.testing.assert_close(total, x + 0, rtol=0, atol=0, equal_nan=True)
        shifted = x.roll(1, 0)
        total = ops.layer_norm_forward(x, shifted, None, None, EPS)[1]
        torch.testing.assert_close(total, x + shifted, rtol=0, atol=0, equal_nan=True)


def test_results_do_not_depend_on_threads():
    torch.manual_seed(0)
    x, dy, weight = torch.randn(3001, 129), torch.randn(3001, 129), torch.randn(129)

    def run(threads):
        torch.set_num_threads(threads)
        y, _, mean, rstd = ops.layer_norm_forward(x, None, weight, None, EPS)
        return [y, mean, rstd, *ops.layer_norm_backward(dy, None, x, weight, True, mean, rstd)]

    for one, many in zip(run(1), run(3), strict=True):
        assert torch.equal(one, many)


@pytest.mark.parametrize("C", [768, 769])
def test_results_larger_than_the_caches_are_the_same(C):
    """Such results are written past the caches, where their rows are aligned."""
    torch.manual_seed(0)
    x, residual = torch.randn(6000, C), torch.randn(6000, C)
    assert x.nbytes > 2**24
    for others in ([None], [residual]):
        whole = ops.layer_norm_forward(x, *others, None, None, EPS)[0]
        parts = [
            ops.layer_norm_forward(x[rows], *(o if o is None else o[rows] for o in others), None, None, EPS)[0]
            for rows in (slice(0, 2500), slice(2500, 6000))
        ]
        assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
def test_padding_plan(dtype):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 0, 1, 0, 1], [0] * 5, [1] * 5]).to(dtype)
    indices, cu_seqlens, positions = ops.padding_plan(mask)
    assert indices.tolist() == mask.flatten().nonzero().flatten().tolist()
    assert cu_seqlens.tolist() == [0, 3, 6, 6, 11] and cu_seqlens.dtype == torch.int32
    assert positions.tolist() == [0, 1, 2, 0, 2, 4, 0, 1, 2, 3, 4] and positions.dtype == torch.int32
    for got, want in zip(ops.padding_plan(mask.T.contiguous().T), (indices, cu_seqlens, positions), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64, *DTYPES, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0,)])
def test_unpad_then_pad(shape, dtype):
    torch.manual_seed(0)
    x = (torch.randn(4, 40, *shape) * 8).to(dtype)[:, ::2].transpose(0, 1)[3]  # (4, *shape) with strange strides
    indices = torch.tensor([3, 0, 2])
    packed = ops.padding_unpad(x, indices)
    assert torch.equal(packed, x[indices])
    padded = ops.padding_pad(packed, indices, 6)
    expected = torch.zeros(6, *shape, dtype=dtype)
    expected[indices] = packed
    assert torch.equal(padded, expected) and padded.is_contiguous()


@pytest.mark.parametrize("rows", [1, 16, 64])
def test_padding_tiles(rows):
    lengths = [0, 1, 15, 16, 17, 64, 65, 0, 130]
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    total = sum(lengths)
    expected = [(b, first) for b, length in enumerate(lengths) for first in range(0, length, rows)]
    tiles = ops.padding_tiles(cu_seqlens, total, rows)
    assert tiles.shape == (total // rows + len(lengths), 2) and tiles.dtype == torch.int32
    assert [tuple(tile) for tile in tiles.tolist()] == expected + [(-1, 0)] * (len(tiles) - len(expected))


X = torch.randn(5, 12)
ROW = X[:, 0].contiguous()


def norm(x, residual=None, weight=None, bias=None):
    return ops.layer_norm_forward(x, residual, weight, bias, EPS)


def norm_backward(dy, dsum=None, rstd=ROW):
    return ops.layer_norm_backward(dy, dsum, X, None, False, ROW, rstd)


def embed(ids):
    return ops.layer_norm_embed_forward(ids, X, None, None, EPS)


def tiles(starts, total, rows=16, dtype=torch.int32):
    return ops.padding_tiles(torch.tensor(starts, dtype=dtype), total, rows)


def rope(positions, half=2):
    table = torch.ones(3, half)
    return ops.rope_forward(torch.ones(len(positions), 3, 1, 4), torch.tensor(positions), table, table)


def pool(starts, mode="mean"):
    return ops.pooling_forward(X, torch.tensor(starts, dtype=torch.int32), mode, False)


CU = torch.tensor([0, 5], dtype=torch.int32)
QKV = torch.randn(5, 3, 2, 4)


def attend(tiles=CU[None], max_seqlen=5, window=-1, attended=None):
    return ops.attention_forward(QKV, CU, None, None, None, None, attended, tiles, max_seqlen, window, 0.5)


def attend_backward(do):
    o, lse = attend()
    return ops.attention_backward(do, QKV, o, lse, CU, None, None, None, None, None, CU[None], 5, -1, 0.5)


def linear_backward(dy):
    return ops.linear_backward(dy, X, X, True, True, True)


def best_backward(dscores):
    return ops.maxsim_backward(dscores, X, X, CU, CU, ops.maxsim_forward(X, X, CU, CU, False, True)[1], False)


BAD_CALLS = [
    (ValueError, r"x must have 2 dimensions, got shape \(12,\)", lambda: norm(X[0])),
    (ValueError, "x must be float32, bfloat16, float16, got float64", lambda: norm(X.double())),
    (ValueError, "at least one column", lambda: norm(X[:, :0])),
    (ValueError, r"residual must be \(T, C\) = \(5, 12\), got \(4, 12\)", lambda: norm(X, X[1:])),
    (ValueError, "residual must be .*float32, got float16", lambda: norm(X, X.half())),
    (ValueError, r"weight must be \(C,\) = \(12,\), got \(11,\)", lambda: norm(X, None, X[0, 1:])),
    (ValueError, "bias needs a weight", lambda: norm(X, None, None, X[0])),
    (ValueError, r"tiles must be \(N, 2\) = \(2, 2\), got \(2,\)", lambda: attend(CU)),
    (ValueError, "max_seqlen is 4, but a text has 5 tokens", lambda: attend(max_seqlen=4)),
    (ValueError, "window must be -1 .* got -2", lambda: attend(window=-2)),
    (ValueError, r"attended must be \(T,\) = \(5,\), got \(4,\)", lambda: attend(attended=torch.ones(4).bool())),
    (ValueError, "attended must be bool, got int32", lambda: attend(attended=torch.ones(5).int())),
    (ValueError, "do must be float32, .* got int64", lambda: attend_backward(QKV[:, 0].long())),
    (ValueError, "dscores must be float32, .* got int64", lambda: best_backward(torch.ones(1, 1).long())),
    (ValueError, "dy must be float32, .* got int64", lambda: linear_backward(X[:, :5].long())),
    (ValueError, r"dsum must be \(T, C\)", lambda: norm_backward(X, X[:2])),
    (ValueError, "dy must be float32, got bfloat16", lambda: norm_backward(X.bfloat16())),
    (ValueError, r"rstd must be \(T,\) = \(5,\)", lambda: norm_backward(X, rstd=X[0])),
    (IndexError, r"ids\[1\] = -1 is outside the vocabulary \[0, 5\)", lambda: embed(torch.tensor([0, -1]))),
    (IndexError, r"ids\[0\] = 5 ", lambda: embed(torch.tensor([5], dtype=torch.int32))),
    (ValueError, "ids must be int32, int64, got float32", lambda: embed(torch.zeros(2))),
    (ValueError, "mask must be bool, uint8, int32, int64, got float32", lambda: ops.padding_plan(X)),
    (IndexError, r"indices\[0\] = 5 is outside \[0, 5\)", lambda: ops.padding_unpad(X, torch.tensor([5]))),
    (IndexError, r"indices\[4\] = 2 ", lambda: ops.padding_pad(X, torch.tensor([0, 1, 0, 1, 2]), 2)),
    (ValueError, r"indices must be \(T,\) = \(5,\)", lambda: ops.padding_pad(X, torch.tensor([0, 1]), 9)),
    (ValueError, "cu_seqlens must start at 0, got 1", lambda: tiles([1, 4], 4)),
    (ValueError, r"must not decrease: cu_seqlens\[2\] = 3 after 4", lambda: tiles([0, 4, 3], 3)),
    (ValueError, "must end at total = 9, got 4", lambda: tiles([0, 4], 9)),
    (ValueError, "cu_seqlens must be int32, got int64", lambda: tiles([0, 4], 4, dtype=torch.int64)),
    (ValueError, "rows must be at least 1, got 0", lambda: tiles([0, 4], 4, rows=0)),
    (ValueError, r"two halves and must be even, got shape \(5, 11\)", lambda: ops.geglu_forward(X[:, 1:])),
    (ValueError, r"dy must be \(T, F\) = \(5, 6\), got \(5, 12\)", lambda: ops.geglu_backward(X, X)),
    (ValueError, "dy must be float32, got float16", lambda: ops.geglu_backward(X[:, :6].half(), X)),
    (IndexError, r"positions\[1\] = 3 is outside \[0, 3\)", lambda: rope([0, 3])),
    (IndexError, r"positions\[0\] = -1 ", lambda: rope([-1, 0])),
    (ValueError, r"cos must be \(P, D / 2\) = \(3, 2\), got \(3, 3\)", lambda: rope([0, 1], half=3)),
    (ValueError, "must end at total = 5, got 4", lambda: pool([0, 4])),
    (ValueError, "mode must be one of cls, mean, got 'max'", lambda: pool([0, 5], "max")),
]


@pytest.mark.parametrize("case", range(len(BAD_CALLS)), ids=lambda case: BAD_CALLS[case][1][:30])
def test_bad_input_raises_and_the_next_call_works(case):
    error, text, call = BAD_CALLS[case]
    with pytest.raises(error, match=text):
        call()
    assert norm(X)[0].isfinite().all()


FORWARD_SCRIPT = """
data = numpy.load(sys.argv[1])
results = {"isa": ops.cpu_isa()}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    x, dy = (torch.from_numpy(data[name]).to(dtype) for name in ("x", "dy"))
    y, sum, mean, rstd = ops.layer_norm_forward(x, dy, None, None, 1e-5)
    dx, _, dbias = ops.layer_norm_backward(dy, None, sum, None, True, mean, rstd)
    x, dy = x[:8, :332], dy[:8, :166]
    gated, dgated = ops.geglu_forward(x), ops.geglu_backward(dy, x)
    tables = torch.linspace(0, 3, 83).cos().expand(4, 83), torch.linspace(0, 3, 83).sin().expand(4, 83)
    rotated = ops.rope_forward(x[:4].reshape(4, 1, 2, 166).expand(4, 3, 2, 166), torch.arange(4), *tables)
    pooled, norm = ops.pooling_forward(dy, torch.tensor([0, 3, 3, 8], dtype=torch.int32), "mean", True)
    for name, value in dict(
        y=y, sum=sum, dx=dx, dbias=dbias, gated=gated, dgated=dgated, rotated=rotated, pooled=pooled, norm=norm
    ).items():
        results[f"{name}-{dtype}"] = value.float().numpy()
numpy.savez(sys.argv[2], **results)
"""


@pytest.fixture(scope="module")
def isa_runs(tmp_path_factory):
    """isa -> the arrays that FORWARD_SCRIPT computed with it, or the error text if it does not run here."""
    folder = tmp_path_factory.mktemp("isa")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 333)) * np.exp2(rng.integers(-26, 17, (9, 333)))  # fp16: subnormal to infinite
    np.savez(folder / "in.npz", x=x.astype(np.float32), dy=rng.standard_normal((9, 333)).astype(np.float32))
    runs = {}
    for isa in ISAS:
        done = in_process(isa, FORWARD_SCRIPT, str(folder / "in.npz"), str(folder / f"{isa}.npz"))
        runs[isa] = done.stderr if done.returncode else dict(np.load(folder / f"{isa}.npz"))
    return runs


def test_instruction_sets_agree(isa_runs):
    """Every set that this machine has gives the same numbers, to fp32 rounding before the last cast."""
    done = {isa: run for isa, run in isa_runs.items() if not isinstance(run, str)}
    assert all(str(run["isa"]) == isa for isa, run in done.items())
    baseline = done.pop("baseline")
    assert done or not torch.backends.cpu.get_cpu_capability().startswith("AVX")
    for other in done.values():
        for name in set(baseline) - {"isa"}:
            if name.startswith("sum"):
                np.testing.assert_array_equal(other[name], baseline[name], err_msg=name)
                continue
            eps = {"bfloat16": 2**-7, "float16": 2**-10}.get(name.rpartition(".")[2], 0)
            np.testing.assert_allclose(other[name], baseline[name], rtol=eps + 1e-4, atol=1e-5, err_msg=name)


def test_unsupported_isa_is_an_error(isa_runs):
    for isa, run in isa_runs.items():
        if isinstance(run, str):
            assert f"ValueError: MODERNBERT_FAST_ISA={isa}: this processor" in run


def test_unknown_isa_is_an_error_each_time():
    script = """
for _ in range(2):
    try:
        ops.layer_norm_forward(torch.ones(2, 4), None, None, None, 1e-5)
    except ValueError as error:
        print(error)
"""
    done = in_process("sse9", script)
    assert done.returncode == 0, done.stderr
    line = "MODERNBERT_FAST_ISA=sse9 is not one of "
    assert done.stdout.count(line) == 2 and "baseline" in done.stdout


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm here")
def test_only_the_stable_abi_is_used():
    """No C++ symbol of torch is needed, so a newer torch can load the library."""
    for library in PACKAGE.glob("_ops_*.so"):
        listed = subprocess.run(["nm", "-D", "-u", "-C", library], capture_output=True, text=True, check=True).stdout
        assert "torch" in listed
        for line in listed.splitlines():
            assert not any(name in line for name in ("at::", "c10::", "Py_", "PyObject")), (
                library.name,
                line,
            )


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf here")
def test_linked_libraries():
    for library in PACKAGE.glob("_ops_*.so"):
        listed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
        assert ("libtorch_cuda.so" if "cuda" in library.name else "libtorch_cpu.so") in listed
        assert "libcudart" not in listed and "RUNPATH" not in listed and "RPATH" not in listed


def test_host_module_reports_this_machine():
    from modernbert_fast import _host

    flags = _host.cpu_flags()
    assert ("avx2" in flags) == torch.cpu._is_avx2_supported()
    assert ("avx512f" in flags) == torch.cpu._is_avx512_supported()
    info = _host.build_info()
    assert "baseline" in info["isas"] and info["compiler"]
    assert json.loads((PACKAGE / "_build_info.json").read_text())["parts"]["_ops_cpu"]["built"]
