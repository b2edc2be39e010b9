"""Attention: lengths around every tile edge, head dims, windows, holes, isolation of texts, the window to the token."""

import itertools

import pytest
import torch

from modernbert_fast import ops
from modernbert_fast.testing import assert_same_bits, checks, memory, problems

OP = "attention"
WINDOWS = (64, -1, 0, 65, 8, 1, 128, -1, 2, 512, 64, 7, 31)
HEADS = ((2, 64), (1, 32), (3, 16), (1, 128), (1, 64))
LIGHT = 300  # tokens
CASES = [
    pytest.param(
        lengths, *heads, window, layout, id=f"{i}-{heads[0]}x{heads[1]}-window {window}-{layout}",
        marks=[pytest.mark.heavy] if sum(lengths) > LIGHT else [],
    )
    for i, (lengths, heads, window, layout) in enumerate(
        zip(
            problems.LENGTHS + problems.LENGTHS[::-1],
            itertools.cycle(HEADS),
            itertools.cycle(WINDOWS),
            itertools.cycle(memory.LAYOUTS),
            strict=False,
        )
    )
]  # fmt: skip


@pytest.mark.parametrize("lengths, H, D, window, layout", CASES)
def test_accuracy(backend, device, dtype, lengths, H, D, window, layout):
    checks.check_accuracy(problems.attention(lengths, H, D, dtype, device, window=window), layout)


@pytest.mark.parametrize("window", [-1, 0, 2, 8, 64])
@pytest.mark.parametrize("rotary", [pytest.param(False, marks=pytest.mark.heavy), True])
def test_holes(backend, device, dtype, window, rotary):
    lengths = (0, 1, 2, 17, 65, 130)
    checks.check_accuracy(problems.attention(lengths, 2, 32, dtype, device, window=window, rotary=rotary, holes=True))


def test_holes_wider_than_the_batch(backend, device, dtype):
    """The window is measured in columns, of which there are more than tokens."""
    checks.check_accuracy(problems.attention((9, 5), 2, 16, dtype, device, window=14, holes=True))


@pytest.mark.parametrize("window", [-1, 2])
@pytest.mark.parametrize("lengths", [(32, 0, 7, 1), pytest.param((100, 530), marks=pytest.mark.heavy)], ids=str)
def test_expansion(backend, device, dtype, lengths, window):
    """Of each text the first tokens are seen, from none to all; those that see none get zeros."""
    checks.check_accuracy(problems.attention(lengths, 1, 32, dtype, device, window=window, expanded=True), "sliced")


@pytest.mark.parametrize("window", [pytest.param(-1, marks=pytest.mark.heavy), 3])
def test_tokens_that_are_not_attended_to_anywhere(backend, device, dtype, window):
    problem = problems.attention((70, 3), 2, 16, dtype, device, window=window, holes=True)
    some = problem.but(draw=lambda draw: {**problem.draw(draw), "attended": draw.integers(0, 3, 73) > 0})
    checks.check_accuracy(some)


@pytest.mark.parametrize("window", [-1, 8])
def test_what_nobody_attends_to_changes_nobody(backend, device, dtype, window):
    inputs = problems.attention((40, 9), 1, 16, dtype, device, window=window, expanded=True).inputs()
    attended = inputs["attended"] = torch.arange(49, device=device) % 41 < 12  # 12 of the first text, 8 of the second
    other = {**inputs, "qkv": torch.where(attended[:, None, None, None], inputs["qkv"], -inputs["qkv"])}
    one, two = (ops.attention(**given, max_seqlen=40, window=window) for given in (inputs, other))
    assert_same_bits(one[attended], two[attended])
    if window < 0:
        assert (one[~attended] != two[~attended]).any(-1).all()  # each sees by its own query
    blind = ops.attention(**{**inputs, "attended": torch.zeros_like(attended)}, max_seqlen=40, window=window)
    assert blind.eq(0).all()


@pytest.mark.rows("cpu", "triton", "reference")
@pytest.mark.parametrize("window", [-1, 8])
def test_a_text_without_expansion_beside_one_with_it(backend, device, dtype, window):
    """Has the bits that it has in a batch where all are seen, forward and backward."""
    problem = problems.attention((40, 70), 2, 16, dtype, device, window=window)
    beside = problem.but(draw=lambda draw: {**problem.draw(draw), "attended": torch.arange(110, device=device) >= 9})
    plain = checks.evaluate(problem.run, problem.inputs(), problem.grads)
    for name, rows in checks.evaluate(beside.run, beside.inputs(), beside.grads).items():
        assert_same_bits(rows[40:], plain[name][40:], name)
        assert not torch.equal(rows[:40], plain[name][:40])


def test_no_rotary_and_a_scale(backend, device, dtype):
    problem = problems.attention((33, 70), 2, 16, dtype, device, window=8, rotary=False)
    checks.check_accuracy(problem)
    inputs = problem.inputs()
    doubled = ops.attention(inputs["qkv"], inputs["cu_seqlens"], 70, window=8, scale=0.5)
    assert_same_bits(doubled, ops.attention(inputs["qkv"], inputs["cu_seqlens"], 70, window=8, scale=0.5))
    assert not torch.equal(doubled, ops.attention(inputs["qkv"], inputs["cu_seqlens"], 70, window=8, scale=0.25))


@pytest.mark.parametrize("D, window", [(32, 8), (64, -1)])
def test_large_scores(backend, device, dtype, D, window):
    """Scores of thousands: the softmax subtracts its maximum."""
    problem = problems.attention((65, 3), 1, D, dtype, device, window=window, rotary=False)
    big = problem.but(draw=lambda draw: {k: v * 60 if k == "qkv" else v for k, v in problem.draw(draw).items()})
    checks.check_accuracy(big, least_draws=4)  # the largest error is that of the nearest tie


@pytest.mark.parametrize("window", [0, 1, *(pytest.param(w, marks=pytest.mark.heavy) for w in (2, 31, 32)), 64, 65])
def test_window_to_the_token(backend, device, dtype, window):
    checks.check_window(device, dtype, window)


@pytest.mark.parametrize("window", [-1, pytest.param(1, marks=pytest.mark.heavy), 64])
@pytest.mark.parametrize(
    "lengths", [(65, 1, 64, 0, 130), pytest.param((2, 15, 16, 17, 257), marks=pytest.mark.heavy)], ids=str
)
def test_isolation(backend, device, dtype, lengths, window):
    checks.check_isolation(problems.attention(lengths, 2, 16, dtype, device, window=window))


@pytest.mark.parametrize("window", [-1, 8])
def test_alone_as_in_a_batch(backend, device, dtype, window):
    """A text's bits do not depend on the batch around it, nor on its place in it."""
    checks.check_alone(device, dtype, window)


@pytest.mark.rows("cpu")
def test_heads_in_groups(backend, device, dtype):
    """A long text's heads are packed a few at a time: each is what it is alone."""
    inputs = problems.attention((5000, 9), 12, 64, dtype, device, window=8).inputs()
    qkv, rest = inputs.pop("qkv"), {**inputs, "max_seqlen": 5000, "window": 8}
    together = ops.attention(qkv, **rest)
    for head in (0, 5, 6, 11):
        assert_same_bits(together[:, [head]], ops.attention(qkv[:, :, [head]], **rest))


@pytest.mark.heavy
def test_repeats(backend, device, dtype):
    """A batch of sixty, twenty times, the memory dirty in between."""
    lengths = tuple((5 * i) % 19 for i in range(60))
    checks.check_repeats(problems.attention(lengths, 2, 16, dtype, device, window=4), times=20)


@pytest.mark.parametrize("claim", [65, 66, 2**31 - 1], ids=["exact", "one more", "INT_MAX"])
@pytest.mark.parametrize("window", [-1, 8])
def test_max_seqlen_is_an_upper_bound(backend, device, any_dtype, claim, window):
    inputs = problems.attention((65, 0, 7), 1, 16, any_dtype, device).inputs()
    expected = ops.attention(**inputs, max_seqlen=65, window=window)
    assert_same_bits(ops.attention(**inputs, max_seqlen=claim, window=window), expected)


@pytest.mark.parametrize("claim", [64, 1, 0, -1, -(2**31)])
def test_refuses_max_seqlen(backend, device, any_dtype, claim):
    if device.type != "cpu":
        pytest.skip("values on a device are not read")
    problem = problems.attention((65, 0, 7), 1, 16, any_dtype, device)
    inputs = problem.inputs()
    checks.check_refuses(lambda: ops.attention(**inputs, max_seqlen=claim), ValueError, problem)


def test_refuses_bounds(backend, device, any_dtype):
    problem = problems.attention((3, 7), 1, 16, any_dtype, device, rotary=False)
    qkv = problem.inputs()["qkv"]
    checks.check_refuses_bounds(lambda bounds: ops.attention(qkv, bounds, 10), 10, problem)


def test_takes_bounds_that_are_not_contiguous(backend, device, any_dtype):
    inputs = problems.attention((3, 7, 0, 12), 1, 16, any_dtype, device, window=2).inputs()
    expected = ops.attention(**inputs, max_seqlen=12, window=2)
    spread = inputs["cu_seqlens"].repeat_interleave(2)[::2]
    assert_same_bits(ops.attention(**inputs | {"cu_seqlens": spread}, max_seqlen=12, window=2), expected)


@pytest.mark.parametrize("value", [-1, 65, 2**31 - 1, -(2**31)])
def test_refuses_positions(backend, device, any_dtype, value):
    if device.type != "cpu":
        pytest.skip("values on a device are not read")
    problem = problems.attention((65, 7), 1, 16, any_dtype, device)
    inputs = problem.inputs()
    inputs["positions"] = inputs["positions"].clone()
    inputs["positions"][3] = value
    checks.check_refuses(lambda: ops.attention(**inputs, max_seqlen=65), IndexError, problem)


@pytest.mark.parametrize(
    "change, error",
    [
        ({"qkv": lambda x: x[:, :2]}, ValueError),
        ({"qkv": lambda x: x.long()}, TypeError),
        ({"qkv": lambda x: x[:, :, 0]}, ValueError),
        ({"cos": lambda x: None}, ValueError),
        ({"positions": lambda x: None}, ValueError),
        ({"positions": lambda x: x[1:]}, ValueError),
        ({"columns": lambda x: x[1:]}, ValueError),
        ({"columns": lambda x: x.float()}, TypeError),
        ({"columns": lambda x: x.to("meta")}, ValueError),
        ({"attended": lambda x: x[1:]}, ValueError),
        ({"attended": lambda x: x.int()}, TypeError),
        ({"attended": lambda x: x[:, None]}, ValueError),
        ({"attended": lambda x: x.to("meta")}, ValueError),
        ({"qkv": lambda x: x.to("meta")}, ValueError),
    ],
    ids=["two planes", "integers", "no planes", "no cos", "no positions", "short positions", "short columns",
         "float columns", "columns elsewhere", "short attended", "attended numbers", "attended matrix",
         "attended elsewhere", "qkv elsewhere"],
)  # fmt: skip
def test_refuses(backend, device, any_dtype, change, error):
    problem = problems.attention((5, 7), 1, 16, any_dtype, device, window=2, holes=True, expanded="attended" in change)
    inputs = problem.inputs()
    for name, changed in change.items():
        inputs[name] = changed(inputs[name])
    checks.check_refuses(lambda: ops.attention(**inputs, max_seqlen=7, window=2), error, problem)


def test_refuses_windows(backend, device, any_dtype):
    problem = problems.attention((5, 7), 1, 16, any_dtype, device)
    inputs = problem.inputs()
    for window in (-2, -(2**31)):
        checks.check_refuses(lambda w=window: ops.attention(**inputs, max_seqlen=7, window=w), ValueError, problem)
