"""Linear: the shapes of the encoder's own products, tails, one dtype."""

import pytest
import torch

from modernbert_fast import dispatch, ops
from modernbert_fast.testing import assert_as_good_as, assert_same_bits, checks, problems

OP = "linear"
SIZES = [(0, 8, 4), (1, 1, 1), (2, 7, 3), (17, 64, 65), (65, 128, 33), (130, 96, 48), (257, 33, 130), (9, 768, 64)]
# Depths and rows around the blocks of the C++ loops, 256 deep and 32 to 128 rows.
SIZES += [(33, 300, 50), (17, 511, 40), (129, 513, 47)]


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


def test_geglu_is_the_two_ops(backend, device, dtype):
    """To the bit, so that a text's vector does not depend on whether gradients are wanted."""
    x, weight, bias = problems.linear(33, 24, 20, dtype, device, bias=True).inputs().values()
    assert_same_bits(ops.linear_geglu(x, weight, bias), ops.geglu(ops.linear(x, weight, bias)))


@pytest.mark.parametrize("run", [ops.linear, ops.linear_geglu])
@pytest.mark.parametrize("grad", [False, True])
def test_forward_mode_raises(run, grad, backend, device):
    """There is no forward mode: an error, never a tangent of zeros."""
    x, weight = problems.linear(3, 4, 6, torch.float32, device).inputs().values()
    with torch.set_grad_enabled(grad), pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda x: run(x, weight), (x,), (torch.ones_like(x),))


def test_bias_of_many_rows(backend, device):
    """Gradients of one sign over every token: one chain of additions would drift."""
    dy, x, weight = (
        torch.rand(8192, 5, device=device),
        torch.ones(8192, 2, device=device),
        torch.ones(5, 2, device=device),
    )
    dbias = torch.ops.modernbert_fast.linear_backward(dy, x, weight, False, False, True)[2]
    assert_as_good_as(dbias, dy.sum(0), dy.double().sum(0))


def test_no_columns_at_all(backend, device):
    assert ops.linear(torch.ones(3, 0, device=device), torch.ones(2, 0, device=device)).tolist() == [[0, 0]] * 3


def test_geglu_of_nothing(backend, device):
    x, weight = torch.ones(3, 4, device=device), torch.ones(0, 4, device=device)
    assert ops.linear_geglu(x, weight).shape == (3, 0)
    with dispatch.use_backend("reference", "geglu"):
        assert ops.linear_geglu(x.requires_grad_(), weight).shape == (3, 0)


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
