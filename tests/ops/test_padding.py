"""Padding: grids of every shape and mask, exact to the bit."""

import pytest
import torch

from modernbert_fast import ops
from modernbert_fast.testing import assert_same_bits, checks, memory, plain, problems

OP = "padding"
B, S = 7, 33


MASKS = {
    "full": torch.ones(B, S, dtype=torch.bool),
    "empty": torch.zeros(B, S, dtype=torch.bool),
    "right": torch.arange(S) < torch.tensor([0, 1, 33, 2, 32, 16, 17])[:, None],
    "left": torch.arange(S) >= torch.tensor([33, 0, 32, 1, 31, 16, 17])[:, None],
    "holes": torch.arange(B * S).view(B, S) % 5 != 2,
    "last": torch.arange(S).expand(B, S) == S - 1,
    "one column": torch.tensor([[True], [False], [True]]),
    "no column": torch.ones(3, 0, dtype=torch.bool),
    "no row": torch.ones(0, 5, dtype=torch.bool),
    "long": torch.arange(1025) < torch.tensor([1023, 1024, 1025, 0])[:, None],
}
GRID = [  # rows, width, kept
    (0, (3,), 0), (1, (1,), 1), (5, (), 3), (64, (8,), 64), (65, (8,), 0), (66, (33,), 65), (257, (2, 3, 5), 130),
    pytest.param(1025, (768,), 511, marks=pytest.mark.heavy),
]  # fmt: skip


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "kind", [torch.bool, *(pytest.param(k, marks=pytest.mark.heavy) for k in (torch.uint8, torch.int32)), torch.int64]
)
def test_plan(backend, device, mask, kind):
    for layout in memory.LAYOUTS:
        checks.check_accuracy(problems.plan(lambda draw: MASKS[mask].to(draw.device, kind), device), layout)


def test_plan_takes_any_nonzero_value(backend, device):
    values = torch.tensor([[2, 0, -1], [0, 2**40, 0]], device=device)
    for got, expected in zip(ops.plan(values), ops.plan(values != 0), strict=True):
        assert_same_bits(got, expected)


@pytest.mark.parametrize("rows, width, kept", GRID)
@pytest.mark.parametrize("make", [problems.unpad, problems.pad], ids=["unpad", "pad"])
def test_moves(backend, device, dtype, make, rows, width, kept):
    for layout in memory.LAYOUTS:
        checks.check_accuracy(make(rows, width, kept, dtype, device), layout)


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float64])
def test_moves_any_dtype(backend, device, kind):
    x = torch.arange(-6, 6, device=device).view(6, 2).to(kind)
    indices = torch.tensor([0, 2, 3, 7, 8, 9], device=device)
    padded = ops.pad(x, indices, 11)
    assert_same_bits(padded, plain.pad(x, indices, 11))
    assert_same_bits(ops.unpad(padded, indices), x)


def test_gather_repeats_rows(backend, device):
    x = torch.arange(12.0, device=device).view(4, 3)
    indices = torch.tensor([3, 3, 0, 1, 3], device=device)
    assert_same_bits(ops.unpad(x, indices), x[indices])


@pytest.mark.parametrize("lengths", problems.LENGTHS, ids=str)
@pytest.mark.parametrize("rows", [1, 16, 64, 128])
def test_tiles(backend, device, lengths, rows):
    checks.check_accuracy(problems.tiles(lengths, rows, device))


@pytest.mark.parametrize("value", [-1, 6, 2**31 - 1, -(2**31), 2**62])
def test_refuses_indices(backend, device, value):
    if device.type != "cpu":
        pytest.skip("values on a device are not read")
    x, indices = torch.ones(3, 2, device=device), torch.tensor([0, value, 2], device=device)
    problem = problems.pad(6, (2,), 3, torch.float32, device)
    checks.check_refuses(lambda: ops.pad(x, indices, 6), IndexError, problem)
    checks.check_refuses(lambda: ops.unpad(x.repeat(2, 1), indices), IndexError, problem)


def test_refuses_bounds(backend, device):
    problem = problems.tiles((3, 7), 4, device)
    checks.check_refuses_bounds(lambda bounds: ops.tiles(bounds, 10, 4), 10, problem, elsewhere=False)


def test_refuses_shapes(backend, device):
    problem = problems.pad(6, (2,), 3, torch.float32, device)
    x, indices = torch.ones(3, 2, device=device), torch.tensor([0, 1, 2], device=device)
    for call, error in (
        (lambda: ops.plan(torch.ones(2, 3, device=device)), TypeError),
        (lambda: ops.plan(torch.ones(3, dtype=torch.bool, device=device)), ValueError),
        (lambda: ops.pad(x, indices[:2], 6), ValueError),
        (lambda: ops.pad(x, indices.float(), 6), TypeError),
        (lambda: ops.pad(x, indices.int(), 6), TypeError),
        (lambda: ops.unpad(x[0, 0], indices), ValueError),
        (lambda: ops.unpad(x, indices[None]), ValueError),
        (lambda: ops.unpad(x, indices.to("meta")), ValueError),
        (lambda: ops.tiles(torch.tensor([0, 3], dtype=torch.int32, device=device), 3, 0), ValueError),
    ):
        checks.check_refuses(call, error, problem)
