"""GeGLU: every tail, both halves, large and special values."""

import itertools

import pytest
import torch

from modernbert_fast import ops
from modernbert_fast.testing import checks, problems

OP = "geglu"
SIZES = [
    (0, 8), (1, 1), (2, 7), (3, 8), (1, 15), (5, 16), (4, 17), (3, 63), (2, 64), (66, 65), (17, 127), (7, 130),
    (2, 1152), (1, 2624), (1025, 24),
]  # fmt: skip


@pytest.mark.parametrize("T, F", SIZES)
def test_accuracy(backend, device, dtype, T, F):
    checks.check_accuracy(problems.geglu(T, F, dtype, device), "sliced" if T % 2 else "permuted")


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 8.0, 200.0])
def test_scales(backend, device, dtype, scale):
    checks.check_accuracy(problems.geglu(64, 48, dtype, device, scale=scale))


def test_special_values(backend, device, dtype):
    """Far tails: exact zeros, the identity, infinities and NaN where the truth has them."""
    special = torch.tensor([0.0, -0.0, 1e-7, -3.0, 6.0, -9.0, 40.0, -40.0, 6e4, -6e4, float("nan")], device=device)
    pairs = torch.cartesian_prod(special, torch.tensor([0.0, 1.0, -2.0], device=device)).T.reshape(1, -1)
    checks.check_accuracy(problems.geglu(1, 33, dtype, device).but(draw=lambda draw: {"x": pairs.to(draw.dtype)}))


BOUNDS = (-200, -13, -6, -3, -1, -0.1, 0.1, 1, 3, 6, 13, 200)


STRETCHES = [
    pytest.param(*pair, marks=[] if pair in ((-6, -3), (-0.1, 0.1), (1, 3)) else [pytest.mark.heavy])
    for pair in itertools.pairwise(BOUNDS)
]


@pytest.mark.parametrize("low, high", STRETCHES)
def test_every_stretch_of_the_curve(backend, device, dtype, low, high):
    """The error rule on each stretch by itself: errors of small results do not hide behind large ones."""
    a = torch.linspace(low, high, 20000, device=device)
    x = torch.cat([a, torch.ones_like(a)])[None]
    checks.check_accuracy(problems.geglu(1, a.numel(), dtype, device).but(draw=lambda draw: {"x": x.to(draw.dtype)}))


def test_infinities(backend, device, dtype):
    """Infinity, -infinity times 0 and NaN are as in the reference, forward and backward."""
    special = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, 1.0, -1.0], device=device)
    pairs = torch.cartesian_prod(special, special).T.reshape(1, -1)
    problem = problems.geglu(1, 36, dtype, device).but(draw=lambda draw: {"x": pairs.to(draw.dtype)})
    checks.check_accuracy(problem)


def test_leading_dimensions(backend, device, dtype):
    x = problems.geglu(12, 6, dtype, device).inputs()["x"]
    assert torch.equal(ops.geglu(x.view(3, 2, 2, 12)), ops.geglu(x).view(3, 2, 2, 6))
    assert torch.equal(ops.geglu(x[0]), ops.geglu(x[:1])[0])


def test_refuses(backend, device):
    problem = problems.geglu(3, 4, torch.float32, device)
    for call, error in (
        (lambda: ops.geglu(torch.ones(2, 3, device=device)), ValueError),
        (lambda: ops.geglu(torch.ones(2, 4, dtype=torch.int64, device=device)), TypeError),
    ):
        checks.check_refuses(call, error, problem)
