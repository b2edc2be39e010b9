"""Linear: the shapes of the encoder's own products, tails, one dtype."""

import pytest
import torch

from modernbert_fast import dispatch, ops
from modernbert_fast.testing import checks, problems

OP = "linear"
SIZES = [(0, 8, 4), (1, 1, 1), (2, 7, 3), (17, 64, 65), (65, 128, 33), (130, 96, 48), (257, 33, 130), (9, 768, 64)]


@pytest.mark.parametrize("T, K, N", SIZES)
@pytest.mark.parametrize("bias", [False, True])
def test_accuracy(backend, device, dtype, T, K, N, bias):
    layout = "sliced" if bias else "permuted"
    checks.check_accuracy(problems.linear(T, K, N, dtype, device, bias=bias), layout)


@pytest.mark.parametrize("T, K, F", SIZES)
@pytest.mark.parametrize("bias", [False, True])
def test_geglu_accuracy(backend, device, dtype, T, K, F, bias):
    layout = "sliced" if bias else "permuted"
    checks.check_accuracy(problems.linear_geglu(T, K, F, dtype, device, bias=bias), layout)


def test_geglu_has_gradients(backend, device, dtype):
    problem = problems.linear_geglu(33, 24, 16, dtype, device, bias=True)
    with dispatch.use_backend("reference", "geglu"):
        checks.check_accuracy(problem.but(grads=("x", "weight", "bias")))


@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("x", "weight")], ids="+".join)
def test_only_the_gradients_that_are_wanted(backend, device, dtype, wanted):
    checks.check_accuracy(problems.linear(33, 24, 16, dtype, device).but(grads=wanted))


def test_leading_dimensions(backend, device, dtype):
    inputs = problems.linear(12, 6, 5, dtype, device).inputs()
    flat = ops.linear(**inputs)
    assert torch.equal(ops.linear(inputs["x"].view(3, 4, 6), inputs["weight"]), flat.view(3, 4, 5))


def test_refuses(backend, device):
    problem = problems.linear(3, 4, 5, torch.float32, device, bias=True)
    x, weight, bias = problem.inputs().values()
    for call, error in (
        (lambda: ops.linear(x, weight[:, 1:], bias), ValueError),
        (lambda: ops.linear(x, weight, bias[1:]), ValueError),
        (lambda: ops.linear(x, weight.half(), bias), TypeError),
        (lambda: ops.linear(x, weight, bias.half()), TypeError),
        (lambda: ops.linear_geglu(x, weight, bias), ValueError),
        (lambda: ops.linear(x.long(), weight.long(), None), TypeError),
        (lambda: ops.linear(x, weight.to("meta"), bias), ValueError),
    ):
        checks.check_refuses(call, error, problem)
