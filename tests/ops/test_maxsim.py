"""MaxSim: ragged queries and documents, empty ones, the winners, no padding in the score."""

import functools
import itertools
import sys

import maxsim_cases
import pytest
import torch

from modernbert_fast import dispatch, ops
from modernbert_fast.testing import assert_as_good_as, assert_same_bits, checks, compressed, memory, plain, problems

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


@pytest.mark.parametrize("large", [1, 9, 17])
def test_int8_documents_without_what_stands_out_in_a_query(backend, device, dtype, large):
    """The score comes from its small elements alone; queries beside it keep their bits."""
    queries, documents, D = (4, 33, 6), (5, 97, 0, 64), 64
    q, d, *bounds = problems.maxsim(queries, documents, D, dtype, device).inputs().values()
    integers = torch.randint(-127, 128, (len(d), D)).to(device, torch.int8)
    integers[:, 7 : 7 + large] = 0
    before = ops.maxsim(q, integers, *bounds)
    q[9, 7 : 7 + large] = 1000
    found = ops.maxsim(q, integers, *bounds)
    with dispatch.use_backend("reference", OP):
        expected = ops.maxsim(q.double(), integers, *bounds)
    assert_as_good_as(found, plain.maxsim(q, integers.to(dtype), *bounds, False), expected)
    assert_same_bits(found[[0, 2]], before[[0, 2]])


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


@pytest.mark.rows("cpu", "triton")
def test_scores_do_not_depend_on_winners_nor_on_company(backend, device, dtype):
    """Queries on both sides of a kernel's tiles, asked for scores alone: in a batch, alone, and with their winners."""
    queries, documents, D = (32, 1, 0, 33, 129), (65, 0, 3), 16
    q, d, cu_queries, cu_documents = problems.maxsim(queries, documents, D, dtype, device).inputs().values()
    scores = ops.maxsim(q, d, cu_queries, cu_documents)
    assert_same_bits(scores, ops.maxsim(q, d, cu_queries, cu_documents, return_argmax=True)[0])
    for i, (start, end) in enumerate(itertools.pairwise(cu_queries.tolist())):
        one = torch.tensor([0, end - start], dtype=torch.int32, device=device)
        assert_same_bits(ops.maxsim(q[start:end], d, one, cu_documents)[0], scores[i], f"query {i}")


def test_winners_only_where_something_is_differentiated(backend, device, monkeypatch):
    """They take time and as much memory as the scores of each token."""
    asked, inputs = [], problems.maxsim((3, 2), (4, 5), 8, torch.float32, device).inputs()
    module = sys.modules["modernbert_fast.ops.maxsim"]
    forward = module._forward
    monkeypatch.setattr(module, "_forward", lambda *args: (asked.append(args[5]), forward(*args))[1])
    assert not ops.maxsim(**inputs).requires_grad
    with torch.no_grad():
        ops.maxsim(**{**inputs, "q": inputs["q"].clone().requires_grad_()})
    for name in "qd":
        assert ops.maxsim(**{**inputs, name: inputs[name].clone().requires_grad_()}).requires_grad
    assert asked == [False, False, True, True]


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


def test_distillation(backend, device):
    """In-batch scores of a student follow a teacher's: the gradients are those of plain torch."""
    student, teacher = (problems.maxsim((5, 0, 9), (7, 12, 0, 3), 16, torch.float32, device) for _ in range(2))
    goal = plain.maxsim(*teacher.inputs(seed=1).values(), pairwise=False)
    seen = torch.isfinite(goal)

    def loss(score, dtype):
        inputs = {n: x.to(dtype).requires_grad_() if n in "qd" else x for n, x in student.inputs().items()}
        scores, wanted = (x.masked_fill(~seen, -1e4).log_softmax(1) for x in (score(**inputs), goal.to(dtype)))
        value = torch.nn.functional.kl_div(scores, wanted, log_target=True, reduction="batchmean")
        return [value, *torch.autograd.grad(value, (inputs["q"], inputs["d"]))]

    by_torch = functools.partial(plain.maxsim, pairwise=False)
    ways = loss(ops.maxsim, torch.float32), loss(by_torch, torch.float32), loss(by_torch, torch.float64)
    for got, same_dtype, truth in zip(*ways, strict=True):
        assert_as_good_as(got, same_dtype, truth)


@pytest.mark.parametrize("at_once", [2**26, 12])
def test_topk(backend, device, monkeypatch, at_once):
    """The documents that a full sort finds, the first of equals first, scaled, filtered; never one without tokens."""
    monkeypatch.setattr(sys.modules["modernbert_fast.ops.maxsim"], "_SCORES", at_once)
    lengths = (3, 0, 5, 1, 70, 2, 0, 9, 4, 4)
    q, d, cu_q, cu_d = problems.maxsim((4, 0, 33), lengths, 16, torch.float32, device).inputs().values()
    d[cu_d[8] : cu_d[9]] = d[cu_d[9] :]  # two documents alike
    scales = torch.arange(1.0, 11.0, device=device)
    scales[9] = scales[8]
    allowed = torch.tensor([n != 2 for n in lengths], device=device)
    scores = ops.maxsim(q, d, cu_q, cu_d) * scales
    for k in (1, 4, 30):
        best, documents = ops.maxsim_topk(q, d, cu_q, cu_d, k, scales=scales, allowed=allowed)
        assert best.shape == documents.shape == (3, k) and documents.dtype == torch.int64
        for i, row in enumerate(scores.tolist()):
            fit = [j for j, n in enumerate(lengths) if n not in (0, 2)]
            order = sorted(fit, key=lambda j: (-row[j], j))[:k]
            assert documents[i].tolist() == order + [-1] * (k - len(order))
            assert best[i].tolist() == [row[j] for j in order] + [float("-inf")] * (k - len(order))
    none = ops.maxsim_topk(q, d[:0], cu_q, cu_d[:1], 2)
    assert none[1].tolist() == [[-1, -1]] * 3
    exact = ops.maxsim_topk(q, d, cu_q, cu_d, 4, scales=scales)
    for got, expected in zip(ops.maxsim_topk(q, d, cu_q, cu_d, 4, scales=scales.double()), exact, strict=True):
        assert_same_bits(got, expected)
    for error, wrong in (
        (ValueError, {"k": 0}),
        (ValueError, {"scales": scales[1:]}),
        (ValueError, {"allowed": allowed[:, None]}),
        (TypeError, {"scales": scales.int()}),
        (TypeError, {"allowed": allowed.int()}),
    ):
        with pytest.raises(error):
            ops.maxsim_topk(q, d, cu_q, cu_d, **{"k": 2, **wrong})


@pytest.mark.parametrize("at_once", [2**26, 2])
def test_topk_never_finds_nan(backend, device, monkeypatch, at_once):
    """A document whose score is NaN takes no place, whatever the sign of its NaN."""
    monkeypatch.setattr(sys.modules["modernbert_fast.ops.maxsim"], "_SCORES", at_once)
    d = torch.tensor([[1.0], [float("nan")], [3.0], [-float("nan")], [2.0]], device=device)
    one = torch.tensor([0, 1], dtype=torch.int32, device=device)
    bounds = torch.arange(6, dtype=torch.int32, device=device)
    scores, documents = ops.maxsim_topk(torch.ones(1, 1, device=device), d, one, bounds, 4)
    assert documents.tolist() == [[2, 4, 0, -1]] and scores.tolist() == [[3.0, 2.0, 1.0, float("-inf")]]


def test_topk_refuses_bounds(backend, device, monkeypatch):
    """Of all documents, where they are scored a part at a time."""
    monkeypatch.setattr(sys.modules["modernbert_fast.ops.maxsim"], "_SCORES", 2)
    problem = problems.maxsim((3, 7), (4, 2, 1, 3), 8, torch.float32, device)
    q, d, cu_queries, _ = problem.inputs().values()
    checks.check_refuses_bounds(lambda bounds: ops.maxsim_topk(q, d, cu_queries, bounds, 2), 10, problem)


def test_skipped_tokens(backend, device, dtype):
    """As if they had never been there, in scores and gradients; a text may lose all of its tokens."""
    q, d, cu_q, cu_d = problems.maxsim((4, 3), (6, 2, 5), 8, dtype, device).inputs().values()
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0], dtype=torch.bool, device=device)
    d.requires_grad_()
    scores = ops.maxsim(q, *(kept := ops.keep_tokens(d, cu_d, mask))[:1], cu_q, kept[1])
    assert kept[1].tolist() == [0, 4, 4, 7]
    assert_same_bits(scores, ops.maxsim(q, d.detach()[mask], cu_q, kept[1]))
    (gradient,) = torch.autograd.grad(scores[:, [0, 2]].sum(), d)
    assert not gradient[~mask].any() and gradient[mask].any()
    with pytest.raises(TypeError):
        ops.keep_tokens(d, cu_d, mask.int())


@pytest.mark.heavy
@pytest.mark.rows("cpu", "triton")
def test_random_cases(backend, device, dtype):
    """More of the same: python tests/maxsim_cases.py 10000."""
    assert maxsim_cases.check(60, dtype, device) == 60


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


COMPRESSED = [  # queries, documents, elements
    ((3, 0, 4), (3, 0, 70, 1, 1, 0, 0, 25, 0), 24),
    ((32,), (95, 96, 97, 200), 128),
    ((300, 2), (5, 130), 33),
    ((2, 3, 1, 4), (97, 5, 1, 20), 520),
]


@pytest.mark.parametrize("case", range(len(COMPRESSED)))
def test_compressed_documents(backend, device, dtype, case):
    """Scores by the error rule, and to the bit those of the integers that they stand for."""
    queries, documents, D = COMPRESSED[case]
    problem = compressed.maxsim(queries, documents, 5, D, dtype, device)
    for layout in memory.LAYOUTS:
        checks.check_accuracy(problem, layout)
    q, *parts, cu_queries, cu_documents = problem.inputs().values()
    d = ops.Compressed(*parts)
    for largest in (1, 1000):  # an element that stands out takes another loop
        q[0, 3] = largest
        assert_same_bits(ops.maxsim(q, d, cu_queries, cu_documents), ops.maxsim(q, d.char(), cu_queries, cu_documents))


@pytest.mark.rows("triton")
@pytest.mark.parametrize("elements", [1, 24 * 10, 24 * 72])
def test_compressed_documents_in_parts(backend, device, monkeypatch, elements):
    """Also documents longer than a part, and empty ones at either end."""
    from modernbert_fast.kernels import maxsim as kernels

    monkeypatch.setattr(kernels, "_ELEMENTS", elements)
    problem = compressed.maxsim((3, 4), (0, 3, 70, 1, 0, 25, 0, 0), 4, 24, torch.float32, device)
    checks.check_accuracy(problem, "contiguous")


def test_search_in_compressed_documents(backend, device, monkeypatch):
    """To the bit that in the integers that they stand for, however many scores there are at a time."""
    problem = compressed.maxsim((3, 4), (3, 0, 70, 1, 1, 0, 0, 25, 0), 4, 24, torch.float32, device)
    q, *parts, cu_queries, bounds = problem.inputs().values()
    d, scales = ops.Compressed(*parts), torch.rand(9, device=device)
    expected = ops.maxsim_topk(q, d.char(), cu_queries, bounds, 9, scales=scales)
    for scores in (1, 8, 2**26):
        monkeypatch.setattr(sys.modules["modernbert_fast.ops.maxsim"], "_SCORES", scores)
        for got, wanted in zip(ops.maxsim_topk(q, d, cu_queries, bounds, 9, scales=scales), expected, strict=True):
            assert_same_bits(got, wanted)
    assert ops.maxsim_topk(q, d[:0], cu_queries, bounds[:1], 2)[1].tolist() == [[-1, -1], [-1, -1]]


def test_refuses_compressed_documents_that_do_not_fit(backend, device):
    problem = compressed.maxsim((3, 4), (3, 7), 3, 24, torch.float32, device)
    q, *parts, cu_queries, bounds = problem.inputs().values()
    d = ops.Compressed(*parts)
    far = ops.Compressed(d.codes, d.nearest + 3, d.centroids, d.levels)
    for call, error in (
        (lambda: ops.maxsim(q, far, cu_queries, bounds), IndexError),
        (lambda: ops.maxsim(q[:, 1:], d, cu_queries, bounds), ValueError),
        (lambda: ops.maxsim(q, d[:9], cu_queries, bounds), ValueError),
        (lambda: ops.maxsim(q, d, cu_queries, bounds + 1), ValueError),
        (lambda: ops.maxsim(q, d, cu_queries, bounds.flip(0)), ValueError),
        (lambda: ops.maxsim(q, d, cu_queries[:2], bounds, pairwise=True), ValueError),
        (lambda: ops.maxsim(q, d, cu_queries, bounds, return_argmax=True), ValueError),
        (lambda: ops.maxsim(q.long(), d, cu_queries, bounds), TypeError),
        (lambda: ops.maxsim(q, d.to(torch.device("meta")), cu_queries, bounds), ValueError),
    ):
        checks.check_refuses(call, error, problem)
