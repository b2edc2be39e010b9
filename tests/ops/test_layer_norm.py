"""Layer norm: widths, dtype mixtures, rows far from zero, the fused residual add and embedding gather."""

import pytest
import torch

from modernbert_fast import ops
from modernbert_fast.testing import assert_same_bits, checks, problems

OP = "layer_norm"
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SIZES = [
    (0, 8), (1, 1), (3, 2), (2, 3), (5, 7), (4, 8), (3, 15), (3, 16), (17, 17), (2, 31), (3, 33), (65, 63), (2, 64),
    (3, 65), (2, 100), (5, 127), (2, 128), (3, 129), (7, 130), (130, 24), (9, 768), (3, 1024), (2, 4097),
]  # fmt: skip


@pytest.mark.parametrize("T, C", SIZES)
def test_accuracy(backend, device, dtype, T, C):
    layout = "permuted" if T % 2 else "sliced"
    checks.check_accuracy(problems.layer_norm(T, C, dtype, device, weight=dtype), layout)


@pytest.mark.parametrize("T, C", [(0, 8), (1, 33), (66, 48), (5, 768)])
@pytest.mark.parametrize("affine", ["none", "weight", "weight and bias", "fp32 weight and bias"])
@pytest.mark.parametrize("residual", ["same", "fp32"])
def test_residual(backend, device, dtype, T, C, affine, residual):
    residual = F32 if residual == "fp32" else dtype
    weight = None if affine == "none" else F32 if "fp32" in affine else residual
    bias = weight if "bias" in affine else None
    problem = problems.layer_norm(T, C, dtype, device, residual=residual, weight=weight, bias=bias)
    checks.check_accuracy(problem, "sliced" if T % 2 else "permuted")


@pytest.mark.parametrize(
    "x, residual, weight", [(F32, BF16, F32), (F32, None, BF16), (F16, F32, BF16), (BF16, F16, F32)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_other_mixtures_of_dtypes_have_a_row(device, x, residual, weight, bias):
    problem = problems.layer_norm(66, 48, x, device, residual=residual, weight=weight, bias=weight if bias else None)
    checks.check_accuracy(problem)


@pytest.mark.parametrize("T, V, C", [(0, 5, 8), (1, 1, 1), (33, 7, 31), (130, 50, 64), (9, 20, 768)])
@pytest.mark.parametrize("ids", [torch.int32, torch.int64])
def test_embedding(backend, device, dtype, T, V, C, ids):
    problem = problems.embed_layer_norm(T, V, C, dtype, device, ids=ids, padding_idx=0)
    checks.check_accuracy(problem, "sliced" if T % 2 else "permuted")


@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 1e2])
@pytest.mark.parametrize("C", [1, 2, 17, 130, 768, 4097])
def test_rows_far_from_zero(backend, device, mean, spread, C):
    """The corrected two-pass rule keeps 1e-6 where torch itself, plain two-pass and Welford lose every digit."""
    checks.check_rows_far_from_zero(device, mean, spread, C)


@pytest.mark.parametrize("value", [0.0, 1.0, -3e4, 6e4, 1e-7])
def test_constant_rows(backend, device, dtype, value):
    x = torch.full((3, 77), value, device=device).to(dtype)
    assert torch.equal(ops.layer_norm(x), torch.zeros_like(x))


def test_largest_half(backend, device):
    """Squares of 6e4 overflow fp16; the statistics are fp32."""
    problem = problems.layer_norm(9, 130, F16, device, weight=F16)

    def draw(draw):
        x = draw(9, 130).sign().mul(6e4)
        return {"x": x, "weight": draw(130)}

    checks.check_accuracy(problem.but(draw=draw))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_rows_stay_alone(backend, device, dtype, value):
    x = problems.layer_norm(5, 33, dtype, device).inputs()["x"]
    clean = ops.layer_norm(x)
    x[2, 7] = value
    y = ops.layer_norm(x)
    assert y[2].isnan().all()
    assert_same_bits(y[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


def test_padding_row_gets_no_gradient(backend, device, dtype):
    ids = torch.tensor([3, 0, 3, 1], device=device)
    table = torch.randn(5, 16, device=device).to(dtype).requires_grad_()
    ops.embed_layer_norm(ids, table, padding_idx=3).square().sum().backward()
    assert table.grad[3].eq(0).all()
    assert table.grad[0].ne(0).any()


@pytest.mark.parametrize("value", [-1, 11, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_refuses_ids(backend, device, value, kind):
    if device.type != "cpu":
        pytest.skip("values on a device are not read")
    problem = problems.embed_layer_norm(9, 11, 8, F32, device, ids=kind)
    inputs = problem.inputs()
    inputs["ids"][5] = value
    checks.check_refuses(lambda: ops.embed_layer_norm(**inputs), IndexError, problem)


def test_refuses(backend, device):
    problem = problems.layer_norm(3, 8, F32, device, residual=F32, weight=F32, bias=F32)
    x, residual, weight, bias = problem.inputs().values()
    ids = torch.tensor([0, 1], device=device)
    for call, error in (
        (lambda: ops.layer_norm(x, weight[1:]), ValueError),
        (lambda: ops.layer_norm(x, weight, bias[1:]), ValueError),
        (lambda: ops.layer_norm(x, None, bias), ValueError),
        (lambda: ops.layer_norm(x.long()), TypeError),
        (lambda: ops.layer_norm(x, weight.long()), TypeError),
        (lambda: ops.layer_norm(x, weight.to("meta")), ValueError),
        (lambda: ops.add_layer_norm(x, residual[1:], weight), ValueError),
        (lambda: ops.add_layer_norm(x, residual.long(), weight), TypeError),
        (lambda: ops.add_layer_norm(x[0], residual[0], weight), ValueError),
        (lambda: ops.embed_layer_norm(ids.float(), x), TypeError),
        (lambda: ops.embed_layer_norm(ids[None], x), ValueError),
        (lambda: ops.embed_layer_norm(ids, x[0]), ValueError),
        (lambda: ops.embed_layer_norm(ids.to("meta"), x), ValueError),
    ):
        checks.check_refuses(call, error, problem)
