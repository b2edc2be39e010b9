"""Ranking: the best of many scores, ties, NaN, documents without tokens, what is found in several launches."""

import pytest
import torch

from modernbert_fast import ops
from modernbert_fast.testing import assert_same_bits, checks, plain, problems

OP = "ranking"
SLICE = 8192  # scores that a program takes the best of


@pytest.mark.parametrize("B, N, k", [(0, 5, 2), (2, 0, 3), (1, 1, 1), (1, 9000, 10), (2, SLICE + 1, 128)])
def test_best(backend, device, dtype, B, N, k):
    checks.check_accuracy(problems.ranking(B, N, k, dtype, device, chosen=N % 2 == 1), "sliced")


def test_more_than_a_kernel_takes(device):
    """One after the other would be slow: the row below serves it."""
    problem = problems.ranking(2, 400, 200, torch.float32, device, chosen=True)
    checks.check_accuracy(problem)


def test_the_earlier_of_equals_across_blocks(backend, device):
    scores = torch.zeros(1, 2 * SLICE + 3, device=device)
    scores[0, [SLICE - 1, SLICE, 2 * SLICE + 2]] = 1
    bounds = torch.arange(scores.shape[1] + 1, dtype=torch.int32, device=device)
    best, documents = ops.ranking(scores, bounds, 5)
    assert documents.tolist() == [[SLICE - 1, SLICE, 2 * SLICE + 2, 0, 1]] and best.tolist() == [[1.0] * 3 + [0.0] * 2]


def test_what_is_never_found(backend, device):
    """NaN of either sign, -inf, documents without tokens or not allowed; infinity and -0 are numbers like others."""
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[1.0, nan, -nan, -inf, 5.0, 7.0, inf, -0.0, 0.0, -3.0]], device=device)
    bounds = torch.tensor([0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9], dtype=torch.int32, device=device)
    allowed = torch.tensor([n != 5 for n in range(10)], device=device)
    best, documents = ops.ranking(scores, bounds, 7, allowed=allowed)
    assert documents.tolist() == [[6, 0, 7, 8, 9, -1, -1]]
    expected = torch.tensor([[inf, 1.0, 0.0, 0.0, -3.0, -inf, -inf]], device=device)
    assert_same_bits(best, expected)  # -0 is given as 0


def test_random_scores(backend, device):
    """Of every size a number has, so that each of its bits decides somewhere."""
    bits = torch.randint(-(2**31), 2**31, (3, 700), dtype=torch.int64).int().to(device)
    bounds = torch.arange(701, dtype=torch.int32, device=device)
    scores = bits.view(torch.float32)
    for got, expected in zip(ops.ranking(scores, bounds, 128), plain.ranking(scores, bounds, 128), strict=True):
        assert_same_bits(got, expected)


def test_refuses(backend, device):
    problem = problems.ranking(2, 6, 3, torch.float32, device, chosen=True)
    scores, bounds, scales, allowed = problem.inputs().values()
    for error, changes in (
        (ValueError, {"k": 0}),
        (ValueError, {"scores": scores[0]}),
        (TypeError, {"scores": scores.long()}),
        (ValueError, {"cu_documents": bounds[1:]}),
        (TypeError, {"cu_documents": bounds.float()}),
        (ValueError, {"scales": scales[1:]}),
        (TypeError, {"scales": scales.int()}),
        (ValueError, {"allowed": allowed[:, None]}),
        (TypeError, {"allowed": allowed.int()}),
        (ValueError, {"allowed": allowed.to("meta")}),
    ):
        call = {"scores": scores, "cu_documents": bounds, "k": 3, "scales": scales, "allowed": allowed, **changes}
        checks.check_refuses(lambda call=call: ops.ranking(**call), error, problem)
