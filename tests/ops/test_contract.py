"""What every op owes on every row of the table, whatever its size: asked of the small problems of each op."""

import pytest
import torch

from modernbert_fast import dispatch, testing
from modernbert_fast.testing import checks, memory


def each(op, dtype, device):
    problems = testing.SMALL[op](dtype, device)
    assert problems, f"{op} has no small problems"
    return problems


@pytest.mark.parametrize("layout", memory.LAYOUTS)
def test_accuracy(op, backend, device, dtype, layout):
    for problem in each(op, dtype, device):
        checks.check_accuracy(problem, layout)


def test_expanded_gradient(op, backend, device, dtype):
    for problem in each(op, dtype, device):
        checks.check_expanded_gradient(problem)


def test_repeats(op, backend, device, dtype):
    for problem in each(op, dtype, device):
        checks.check_repeats(problem, times=5)


def test_isolation(op, backend, device, dtype):
    for problem in each(op, dtype, device):
        checks.check_isolation(problem)


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_registration(op, backend, device, layout):
    """opcheck, and no registered op of this name goes unasked."""
    asked = set()
    for problem in each(op, torch.float32, device):
        asked |= checks.check_registration(problem, layout)
    registered = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith(f"modernbert_fast::{op}_")}
    assert registered <= {name.partition(".")[0] for name in asked}


def test_compiled(op, backend, device):
    for problem in each(op, torch.float32, device):
        checks.check_compiled(problem)


def test_gradients(op, backend, device):
    """Finite differences in float64, for the rows that take it."""
    for problem in each(op, torch.float64, device):
        if problem.grads:
            checks.check_gradients(problem)


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_reference_is_plain_torch(op, device):
    """The definition of right, against the same function written by other means."""
    for dtype in (torch.float32, torch.bfloat16):
        for problem in each(op, dtype, device):
            checks.check_reference(problem)
