"""MaxSim: ragged queries and documents, empty ones, the winners, no padding in the score."""

import itertools

import pytest
import torch

from modernbert_fast import dispatch, ops
from modernbert_fast.testing import assert_as_good_as, assert_same_bits, checks, memory, plain, problems

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
    ((3, 20), (5, 70), 200),
]
HEAVY = (4, 7, 8)


@pytest.mark.parametrize(
    "i", [pytest.param(i, marks=[pytest.mark.heavy] if i in HEAVY else []) for i in range(len(CASES))]
)
def test_all_pairs(backend, device, dtype, i):
    checks.check_accuracy(problems.maxsim(*CASES[i], dtype, device), memory.LAYOUTS[i % 3])


@pytest.mark.parametrize(
    "queries, documents, D",
    [
        ((), (), 4),
        pytest.param((3,), (5,), 8, marks=pytest.mark.heavy),
        pytest.param((0, 2, 1, 4), (1, 0, 3, 0), 7, marks=pytest.mark.heavy),
        ((32, 31, 0, 1), (129, 0, 64, 257), 64),
    ],
)
def test_pairwise(backend, device, dtype, queries, documents, D):
    checks.check_accuracy(problems.maxsim(queries, documents, D, dtype, device, pairwise=True), "sliced")


@pytest.mark.parametrize("pairwise", [False, True])
def test_int8_documents_are_their_integers(backend, device, dtype, pairwise):
    """Of every width a row's loads can end in, at both ends of int8, sliced from something larger."""
    queries, documents = (3, 0, 33, 8, 20), (5, 97, 0, 64, 12)
    for D in (1, 7, 16, 33, 130):
        q, d, *bounds = problems.maxsim(queries, documents, D, dtype, device).inputs().values()
        integers = torch.randint(-128, 128, (len(d) + 1, D + 3)).to(device, torch.int8)[1:, 2:-1]
        found = ops.maxsim(q, integers, *bounds, pairwise=pairwise, return_argmax=True)
        with dispatch.use_backend("reference", OP):
            expected = ops.maxsim(q.double(), integers, *bounds, pairwise=pairwise, return_argmax=True)
        same_dtype = plain.maxsim(q, integers.to(dtype), *bounds, pairwise)
        assert_as_good_as(found[0], same_dtype, expected[0], f"D = {D}")
        assert torch.equal(found[1], expected[1])
        assert not ops.maxsim(q.requires_grad_(), integers, *bounds, pairwise=pairwise).requires_grad


def test_isolation(backend, device, dtype):
    lengths = (65, 1, 64, 130)
    checks.check_isolation(problems.maxsim((3, 5, 17, 2), lengths, 33, dtype, device, pairwise=True))


def test_alone_as_in_any_batch(backend, device, dtype):
    """A score's bits and winners do not depend on the other queries and documents, nor on the place among them."""
    queries, documents, D = (5, 0, 32, 7, 300), (1, 130, 0, 97, 300), 40
    q, d, cu_queries, cu_documents = problems.maxsim(queries, documents, D, dtype, device).inputs().values()
    scores, argmax = ops.maxsim(q, d, cu_queries, cu_documents, return_argmax=True)
    pairs = ops.maxsim(q, d, cu_queries, cu_documents, pairwise=True)
    q_bounds, d_bounds = cu_queries.tolist(), cu_documents.tolist()
    for i, (q_start, q_end) in enumerate(itertools.pairwise(q_bounds)):
        for j, (d_start, d_end) in enumerate(itertools.pairwise(d_bounds)):
            one = [torch.tensor([0, n], dtype=torch.int32, device=device) for n in (q_end - q_start, d_end - d_start)]
            alone, winners = ops.maxsim(q[q_start:q_end], d[d_start:d_end], *one, return_argmax=True)
            assert_same_bits(alone[0, 0], scores[i, j], f"query {i}, document {j}")
            expected = argmax[q_start:q_end, j] - (d_start if d_end > d_start else 0)
            assert torch.equal(winners[:, 0], expected)
        assert_same_bits(pairs[i], scores[i, i], f"pair {i}")


@pytest.mark.heavy
@pytest.mark.parametrize("pairwise", [False, True])
def test_results_do_not_depend_on_threads(backend, device, dtype, keep_threads, pairwise):
    if backend == "reference":
        pytest.skip("torch may split its own products by threads")
    lengths = tuple((31 * i) % 257 for i in range(12))
    problem = problems.maxsim((17,) * 12, lengths, 64, dtype, device, pairwise=pairwise)
    torch.set_num_threads(1)
    one = checks.evaluate(problem.run, problem.inputs(), problem.grads)
    torch.set_num_threads(2)
    for name, got in checks.evaluate(problem.run, problem.inputs(), problem.grads).items():
        assert_same_bits(got, one[name], name)


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(3))
def test_random_lengths(backend, device, dtype, seed):
    draw = torch.Generator().manual_seed(seed)

    def lengths(count, longest):
        return tuple(torch.randint(0, longest, (count,), generator=draw).tolist())

    D = int(torch.randint(1, 600, (), generator=draw))
    checks.check_accuracy(problems.maxsim(lengths(6, 60), lengths(9, 250), D, dtype, device), memory.LAYOUTS[seed])


def test_ties_and_nan(backend, device, dtype):
    """The first of equal maxima wins; a NaN beats every number and shows in the score."""
    d = torch.zeros(200, 3, dtype=dtype, device=device)
    d[[70, 130, 199]] = 1
    q = torch.ones(2, 3, dtype=dtype, device=device)
    one = torch.tensor([0, 2], dtype=torch.int32, device=device)
    two = torch.tensor([0, 100, 200], dtype=torch.int32, device=device)
    scores, argmax = ops.maxsim(q, d, one, two, return_argmax=True)
    assert scores.tolist() == [[6.0, 6.0]] and argmax.tolist() == [[70, 130]] * 2
    d[[110, 150]] = float("nan")
    scores, argmax = ops.maxsim(q, d, one, two, return_argmax=True)
    assert scores[0, 0] == 6 and scores[0, 1].isnan() and argmax.tolist() == [[70, 110]] * 2


def test_gradient_of_one_winner_for_many(backend, device, dtype):
    """Every query token of every query chooses the same document token: its gradient is their sum."""
    problem = problems.maxsim((3, 40, 5), (4,), 8, dtype, device)
    inputs = {**problem.inputs(), "d": torch.zeros(4, 8, dtype=dtype, device=device)}
    inputs = {name: x.requires_grad_() if name in problem.grads else x for name, x in inputs.items()}
    ops.maxsim(**inputs).backward(torch.tensor([[1.0], [-2.0], [0.5]], device=device))
    parts = inputs["q"].detach().double().split([3, 40, 5])
    expected = sum(weight * part.sum(0) for weight, part in zip((1, -2, 0.5), parts, strict=True))
    torch.testing.assert_close(inputs["d"].grad[0], expected.to(dtype))
    assert not inputs["d"].grad[1:].any() and not inputs["q"].grad.any()


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
