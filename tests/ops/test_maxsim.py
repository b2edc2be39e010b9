"""MaxSim: ragged queries and documents, empty ones, the winners, no padding in the score."""

import pytest
import torch

from modernbert_fast import ops
from modernbert_fast.testing import assert_same_bits, checks, memory, problems

OP = "maxsim"
CASES = [  # queries, documents, width
    ((), (), 8),
    ((3,), (), 8),
    ((), (4,), 8),
    ((1,), (1,), 1),
    ((0, 2, 1), (1, 2, 3, 0), 7),
    ((32, 31), (127, 128, 129, 1), 128),
    ((15, 16, 17, 0), (255, 63, 64, 65), 64),
    ((2,), (511, 513, 1025), 33),
    ((1, 2, 3, 4, 5, 6, 7), tuple((7 * i) % 23 for i in range(60)), 96),
]


@pytest.mark.parametrize("i", range(len(CASES)))
def test_all_pairs(backend, device, dtype, i):
    checks.check_accuracy(problems.maxsim(*CASES[i], dtype, device), memory.LAYOUTS[i % 3])


@pytest.mark.parametrize(
    "queries, documents, D",
    [((), (), 4), ((3,), (5,), 8), ((0, 2, 1, 4), (1, 0, 3, 0), 7), ((32, 31, 1), (129, 64, 257), 64)],
)
def test_pairwise(backend, device, dtype, queries, documents, D):
    checks.check_accuracy(problems.maxsim(queries, documents, D, dtype, device, pairwise=True), "sliced")


def test_isolation(backend, device, dtype):
    lengths = (65, 1, 64, 130)
    checks.check_isolation(problems.maxsim((3, 5, 32, 7), lengths, 33, dtype, device, pairwise=True))


@pytest.mark.parametrize("pairwise", [False, True])
def test_winners(backend, device, dtype, pairwise):
    """Small whole numbers, exact in every dtype; one best document token for each query token."""
    D = 8
    d = torch.cat([torch.eye(D), 2 * torch.eye(D)[:3]]).to(device, dtype)
    q = torch.eye(D)[[5, 1, 0, 7]].to(device, dtype)
    cu_queries = torch.tensor([0, 1, 4], dtype=torch.int32, device=device)
    cu_documents = torch.tensor([0, 8, 11], dtype=torch.int32, device=device)
    scores, argmax = ops.maxsim(q, d, cu_queries, cu_documents, pairwise=pairwise, return_argmax=True)
    if pairwise:
        assert scores.tolist() == [1.0, 4.0]
        assert argmax[[0, 1, 2]].tolist() == [5, 9, 8]
    else:
        assert scores.tolist() == [[1.0, 0.0], [3.0, 4.0]]
        assert argmax[:, 0].tolist() == [5, 1, 0, 7]
        assert argmax[1:3, 1].tolist() == [9, 8]
    assert argmax.dtype == torch.int32 and scores.dtype == torch.float32


def test_all_negative_scores(backend, device, dtype):
    """A zero from padding would win over them."""
    q, d = -torch.ones(2, 4, dtype=dtype, device=device), torch.ones(5, 4, dtype=dtype, device=device)
    one = torch.tensor([0, 2], dtype=torch.int32, device=device)
    two = torch.tensor([0, 1, 5], dtype=torch.int32, device=device)
    assert ops.maxsim(q, d, one, two).tolist() == [[-8.0, -8.0]]


def test_empty_documents(backend, device):
    q, d = torch.ones(2, 4, device=device), torch.ones(1, 4, device=device)
    cu_queries = torch.tensor([0, 2, 2], dtype=torch.int32, device=device)
    cu_documents = torch.tensor([0, 0, 1], dtype=torch.int32, device=device)
    scores, argmax = ops.maxsim(q, d, cu_queries, cu_documents, return_argmax=True)
    assert scores.tolist() == [[float("-inf"), 8.0], [0.0, 0.0]]
    assert argmax.tolist() == [[-1, 0], [-1, 0]]


def test_refuses_bounds(backend, device):
    problem = problems.maxsim((3, 7), (4, 6), 8, torch.float32, device)
    q, d, cu_queries, cu_documents = problem.inputs().values()
    checks.check_refuses_bounds(lambda bounds: ops.maxsim(q, d, bounds, cu_documents), 10, problem)
    checks.check_refuses_bounds(lambda bounds: ops.maxsim(q, d, cu_queries, bounds), 10, problem)


def test_takes_bounds_that_are_not_contiguous(backend, device):
    inputs = problems.maxsim((3, 7), (4, 6), 8, torch.float32, device).inputs()
    spread = {n: x.repeat_interleave(2)[::2] if n.startswith("cu") else x for n, x in inputs.items()}
    assert_same_bits(ops.maxsim(**spread), ops.maxsim(**inputs))


def test_refuses(backend, device):
    problem = problems.maxsim((3, 7), (4, 6), 8, torch.float32, device)
    q, d, cu_queries, cu_documents = problem.inputs().values()
    for call, error in (
        (lambda: ops.maxsim(q, d[:, 1:], cu_queries, cu_documents), ValueError),
        (lambda: ops.maxsim(q.long(), d, cu_queries, cu_documents), TypeError),
        (lambda: ops.maxsim(q, d.to("meta"), cu_queries, cu_documents), ValueError),
        (lambda: ops.maxsim(q, d[:4], cu_queries, cu_documents[:2], pairwise=True), ValueError),
    ):
        checks.check_refuses(call, error, problem)
