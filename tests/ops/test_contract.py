"""What every op owes on every row of the table, whatever its size: asked of the small problems of each op."""

import pytest
import torch

from modernbert_fast import dispatch, testing
from modernbert_fast.testing import checks, memory, tails


def each(op, dtype, device):
    """The small problems that the row in force takes; where it takes none, its objection."""
    taken, objection = [], AssertionError(f"{op} has no small problems")
    for problem in testing.SMALL[op](dtype, device):
        try:
            checks.evaluate(problem.run, problem.inputs())
            taken.append(problem)
        except dispatch.NoBackend as no:
            objection = no
            if dispatch.QUERIES_ONLY not in str(no):  # the one flag that a row may leave to others
                raise
    if not taken:
        raise objection
    return taken


def registered(op):
    return {name for name in torch._C._dispatch_get_all_op_names() if name.startswith(f"modernbert_fast::{op}_")}


@pytest.mark.parametrize("layout", memory.LAYOUTS)
def test_accuracy(op, backend, device, dtype, layout):
    for problem in each(op, dtype, device):
        checks.check_accuracy(problem, layout)


def test_expanded_gradient(op, backend, device, dtype):
    if op == "linear" and backend in ("aten", "reference") and device.type != "cpu":
        pytest.skip("cuBLAS may choose its product by the layout")
    for problem in each(op, dtype, device):
        checks.check_expanded_gradient(problem)


def test_repeats(op, backend, device, dtype):
    for problem in each(op, dtype, device):
        checks.check_repeats(problem, times=5)


def test_isolation(op, backend, device, dtype):
    for problem in each(op, dtype, device):
        checks.check_isolation(problem)


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_registration(op, backend, device, any_dtype, layout):
    """opcheck, and no registered op of this name goes unasked."""
    asked = set()
    for problem in each(op, any_dtype, device):
        asked |= checks.check_registration(problem, layout)
    assert registered(op) <= {name.partition(".")[0] for name in asked}


def test_compiled(op, backend, device, any_dtype):
    for problem in each(op, any_dtype, device):
        checks.check_compiled(problem)


def test_gradients(op, backend, device):
    """Finite differences in float64, for the rows that take it."""
    for problem in each(op, torch.float64, device):
        if problem.grads:
            checks.check_gradients(problem)


@pytest.mark.rows("cpu")
def test_nothing_is_read_beyond_the_inputs(op, backend, device, dtype):
    """Unreadable pages at either end of every input, at every size: a crash here is the finding."""
    asked, objection = set(), None
    for n in tails.SIZES:
        for problem in tails.TAILS[op](n, dtype, device):
            try:
                asked |= checks.check_fenced(problem)
            except dispatch.NoBackend as no:  # a size that the row leaves to others
                objection = no
    if not asked:
        raise objection
    assert registered(op) <= {name.partition(".")[0] for name in asked}


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_reference_is_plain_torch(op, device):
    """The definition of right, against the same function written by other means."""
    for dtype in (torch.float32, torch.bfloat16):
        for problem in each(op, dtype, device):
            checks.check_reference(problem)
