"""Pooling: empty and one-token texts, both modes, unit length."""

import pytest
import torch

from modernbert_fast import ops
from modernbert_fast.testing import assert_same_bits, checks, memory, problems

OP = "pooling"


@pytest.mark.parametrize("i", range(len(problems.LENGTHS)))
@pytest.mark.parametrize("mode", ["cls", "mean"])
def test_accuracy(backend, device, dtype, i, mode):
    C, layout = (1, 7, 64, 130)[i % 4], memory.LAYOUTS[i % 3]
    problem = problems.pooling(problems.LENGTHS[i], C, dtype, device, mode=mode, normalize=bool(i % 2))
    checks.check_accuracy(problem, layout)


@pytest.mark.parametrize("mode", ["cls", "mean"])
@pytest.mark.parametrize("normalize", [False, True])
def test_wide(backend, device, dtype, mode, normalize):
    checks.check_accuracy(problems.pooling((9, 0, 1, 66), 768, dtype, device, mode=mode, normalize=normalize), "sliced")


@pytest.mark.parametrize("mode", ["cls", "mean"])
def test_isolation(backend, device, dtype, mode):
    checks.check_isolation(problems.pooling((65, 1, 0, 64, 130), 33, dtype, device, mode=mode, normalize=True))


@pytest.mark.parametrize("normalize", [False, True])
def test_empty_texts_and_zero_rows_are_zero(backend, device, dtype, normalize):
    x = torch.zeros(3, 5, dtype=dtype, device=device, requires_grad=True)
    cu_seqlens = torch.tensor([0, 0, 3, 3], dtype=torch.int32, device=device)
    y = ops.pooling(x, cu_seqlens, "mean", normalize)
    assert torch.equal(y, torch.zeros(3, 5, dtype=dtype, device=device))
    y.sum().backward()
    assert not x.grad.isnan().any()


def test_refuses_bounds(backend, device):
    problem = problems.pooling((3, 7), 8, torch.float32, device)
    x = problem.inputs()["x"]
    checks.check_refuses_bounds(lambda bounds: ops.pooling(x, bounds, "mean"), 10, problem)


def test_takes_bounds_that_are_not_contiguous(backend, device):
    inputs = problems.pooling((3, 7, 0, 12), 8, torch.float32, device).inputs()
    spread = inputs["cu_seqlens"].repeat_interleave(2)[::2]
    assert_same_bits(ops.pooling(inputs["x"], spread, "mean"), ops.pooling(**inputs, mode="mean"))


def test_refuses(backend, device):
    problem = problems.pooling((3, 7), 8, torch.float32, device)
    x, cu_seqlens = problem.inputs().values()
    for call, error in (
        (lambda: ops.pooling(x, cu_seqlens, "max"), ValueError),
        (lambda: ops.pooling(x.long(), cu_seqlens), TypeError),
        (lambda: ops.pooling(x[0], cu_seqlens), ValueError),
        (lambda: ops.pooling(x.to("meta"), cu_seqlens), ValueError),
    ):
        checks.check_refuses(call, error, problem)
