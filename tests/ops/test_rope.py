"""Rotary embedding: head dims, far positions, v untouched."""

import pytest
import torch

from modernbert_fast import ops
from modernbert_fast.testing import assert_same_bits, checks, problems

OP = "rope"
SIZES = [
    (0, 2, 64), (1, 1, 2), (2, 3, 8), (17, 1, 32), (65, 2, 64), (127, 1, 128), (9, 12, 64), (3, 1, 6), (514, 1, 16),
]  # fmt: skip


@pytest.mark.parametrize("T, H, D", SIZES)
def test_accuracy(backend, device, dtype, T, H, D):
    checks.check_accuracy(problems.rope(T, H, D, dtype, device), "sliced" if T % 2 else "permuted")


def test_far_positions(backend, device, dtype):
    checks.check_accuracy(problems.rope(64, 1, 64, dtype, device, far=8192))


def test_values_pass_unchanged(backend, device, dtype):
    inputs = problems.rope(33, 2, 16, dtype, device).inputs()
    inputs["qkv"][0, 2] = float("inf")
    rotated = ops.rope(**inputs)
    assert_same_bits(rotated[:, 2], inputs["qkv"][:, 2])
    assert rotated[:, :2].isfinite().all()


def test_position_zero_is_the_identity(backend, device, dtype):
    inputs = problems.rope(9, 2, 16, dtype, device).inputs()
    inputs["positions"].zero_()
    assert torch.equal(ops.rope(**inputs), inputs["qkv"])


@pytest.mark.parametrize("value", [-1, 64, 2**31 - 1, -(2**31)])
def test_refuses_positions(backend, device, value):
    if device.type != "cpu":
        pytest.skip("values on a device are not read")
    problem = problems.rope(9, 2, 8, torch.float32, device, far=64)
    inputs = problem.inputs()
    inputs["positions"][4] = value
    checks.check_refuses(lambda: ops.rope(**inputs), IndexError, problem)


@pytest.mark.parametrize(
    "change, error",
    [
        (lambda i: i | {"qkv": i["qkv"][:, :2]}, ValueError),
        (lambda i: i | {"qkv": i["qkv"][..., :7]}, ValueError),
        (lambda i: i | {"qkv": i["qkv"].long()}, TypeError),
        (lambda i: i | {"positions": i["positions"][1:]}, ValueError),
        (lambda i: i | {"positions": i["positions"].float()}, TypeError),
        (lambda i: i | {"cos": i["cos"][1:]}, ValueError),
        (lambda i: i | {"cos": i["cos"].half(), "sin": i["sin"].half()}, ValueError),
        (lambda i: i | {"positions": i["positions"].to("meta")}, ValueError),
    ],
    ids=["two planes", "odd head", "integers", "short positions", "float positions", "short table", "half", "device"],
)
def test_refuses(backend, device, change, error):
    problem = problems.rope(9, 2, 8, torch.float32, device)
    checks.check_refuses(lambda: ops.rope(**change(problem.inputs())), error, problem)
