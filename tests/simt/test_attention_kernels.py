"""What only the attention kernels can get wrong: bounds, schedules and positions that nobody has read, offsets beyond
32 bits, scales of any sign; for each family of chips. Runs where the host executor does (tests/test_simt.py).
"""

import itertools

import pytest
import torch

from modernbert_fast import dispatch, library, ops
from modernbert_fast.testing import Guarded, assert_same_bits, checks, memory, problems

pytestmark = pytest.mark.skipif(not library.CUDA_ON_HOST, reason="runs in the process that tests/test_simt.py starts")
CPU, F16 = torch.device("cpu"), torch.float16
BIG = 2**31 - 1


@pytest.fixture(autouse=True)
def forced():
    with dispatch.use_backend("cuda", "attention"):
        yield


@pytest.fixture(params=["75", "80", "90"])
def chip(request, monkeypatch) -> str:
    monkeypatch.setenv("MODERNBERT_FAST_SM", request.param)
    return request.param


def head(chip: str, other: int) -> int:
    """Columns of a head that the chip has code of its own for."""
    return 64 if chip == "90" else other


def native():
    """The functions of the CUDA row, below the op's checks of values: what a GPU's kernels are given."""
    (row,) = (row for row in dispatch.TABLE["attention"] if row.backend == "cuda")
    return row.load("attention")


HOSTILE = [(0, 5, 3, 10), (0, -1, 10), (0, BIG, 10), (-BIG - 1, 4, BIG), (9, 4, 10), (0, 4, 4), (2, 6, 8),
           (20, 30, 40), (0,)]  # fmt: skip


@pytest.mark.parametrize("bounds", HOSTILE, ids=str)
@pytest.mark.parametrize("window", [-1, 2])
def test_hostile_bounds(chip, bounds, window):
    """Nothing outside is read or written, every row of the results is, and with zeros where no text has it."""
    T, H, D = 10, 1, head(chip, 32)
    cu_seqlens, texts = torch.tensor(bounds, dtype=torch.int32), len(bounds) - 1
    qkv, do = Guarded(torch.randn(T, 3, H, D).half()), Guarded(torch.randn(T, H, D).half())
    positions = torch.tensor([BIG, -1, -BIG - 1, 3, *range(6)], dtype=torch.int32)
    table = torch.ones(3, D // 2)
    tiles = torch.tensor([*((text, 0) for text in range(texts)), (texts, 0), (-5, 0), (0, BIG), (0, -64), (0, 64),
                          (0, 1)], dtype=torch.int32)  # fmt: skip
    geometry = (cu_seqlens, positions, table, table, None, None, tiles, T, window, 0.1)
    o, lse = native().forward(qkv.tensor, *geometry)
    dqkv = native().backward(do.tensor, qkv.tensor, o, lse, *geometry)
    of_texts = {t for start, end in itertools.pairwise(bounds) for t in range(max(start, 0), min(end, T))}
    of_nobody = sorted(set(range(T)) - of_texts)
    for result in (o, lse.T, dqkv):
        assert result.isfinite().all()
        assert result[of_nobody].eq(0).all()
    qkv.check("qkv")
    do.check("do")


@pytest.mark.parametrize("window", [-1, 1])
def test_offsets_beyond_32_bits(chip, window):
    inputs = problems.attention((1, 3), 2, head(chip, 16), F16, CPU).inputs()
    near = inputs.pop("qkv")
    do = torch.randn(4, 2, near.shape[3]).half()
    results = []
    for qkv, gradient in ((near, do), (memory.far_apart(near), memory.far_apart(do))):
        leaf = qkv.requires_grad_()
        o = ops.attention(leaf, max_seqlen=3, window=window, **inputs)
        results.append((o.detach(), *torch.autograd.grad(o, leaf, gradient)))
    for got, expected in zip(*results, strict=True):
        assert_same_bits(got.contiguous(), expected)


def test_scale_of_any_sign(chip):
    inputs = problems.attention((70, 3), 1, head(chip, 32), F16, CPU).inputs()
    qkv = inputs.pop("qkv")
    turned = qkv.clone()
    turned[:, 0] *= -1
    run = lambda x, scale: ops.attention(x, max_seqlen=70, scale=scale, **inputs)  # noqa: E731
    assert_same_bits(run(qkv, -0.3), run(turned, 0.3))
    assert_same_bits(run(qkv, 0.0), run(qkv, 1e-30))


@pytest.mark.parametrize("chip", ["90"], indirect=True)
@pytest.mark.parametrize("dtype", [F16, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(1,), (128,), (129, 0, 3), (300,)], ids=str)
def test_hopper(chip, lengths, dtype):
    """Global layers by wgmma: the error rule, no leak between texts, the same bits in any order of the warps."""
    problem = problems.attention(lengths, 1, 64, dtype, CPU)
    checks.check_accuracy(problem)
    if len(lengths) > 1:
        checks.check_isolation(problem)
        checks.check_repeats(problem)


def test_refusals(monkeypatch):
    qkv, bounds = torch.zeros(4, 3, 1, 32), torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(dispatch.NoBackend, match="does not take float32"):
        ops.attention(qkv, bounds, 4)
    with pytest.raises(dispatch.NoBackend, match="does not take width 24"):
        ops.attention(qkv.half()[..., :24], bounds, 4)
    with pytest.raises(dispatch.NoBackend, match="does not do tokens that are not attended to"):
        ops.attention(qkv.half(), bounds, 4, attended=torch.ones(4, dtype=torch.bool))
    monkeypatch.setenv("MODERNBERT_FAST_SM", "75")
    with pytest.raises(ValueError, match="qkv must be float16, got bfloat16"):
        ops.attention(qkv.bfloat16(), bounds, 4)
    monkeypatch.setenv("MODERNBERT_FAST_SM", "60")
    with pytest.raises(ValueError, match="MODERNBERT_FAST_SM=60 is no chip"):
        ops.attention(qkv.half(), bounds, 4)
