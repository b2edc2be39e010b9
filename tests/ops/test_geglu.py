"""GeGLU: every tail, both halves, large and special values."""

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
