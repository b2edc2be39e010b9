"""What only CUDA kernels can get wrong: bounds that nobody has read before the launch, offsets beyond 32 bits, widths
that warps share. Runs where the host executor does (tests/test_simt.py); the ops' own tests run there too.
"""

import pytest
import torch

from modernbert_fast import dispatch, library, ops
from modernbert_fast.testing import Guarded, assert_same_bits, checks, memory, problems

pytestmark = pytest.mark.skipif(not library.CUDA_ON_HOST, reason="runs in the process that tests/test_simt.py starts")
CPU, F32 = torch.device("cpu"), torch.float32
BIG = 2**31 - 1


@pytest.fixture(autouse=True)
def forced():
    with dispatch.use_backend("cuda", "padding", "layer_norm", "geglu"):
        yield


def native(op: str):
    """The functions of the CUDA row, below the op's checks of values: what a GPU's kernels are given."""
    (row,) = (row for row in dispatch.TABLE[op] if row.backend == "cuda")
    return row.load(op)


@pytest.mark.parametrize("bad", [-1, 6, BIG, -BIG - 1, 2**62, -(2**63)])
def test_indices_outside_name_nothing(bad):
    x = torch.arange(12.0).view(6, 2) + 1
    guard = Guarded(x)
    got = native("padding").unpad(guard.tensor, torch.tensor([5, bad, 0]))
    assert_same_bits(got, torch.stack([x[5], torch.zeros(2), x[0]]))
    got = native("padding").pad(guard.tensor[:3], torch.tensor([5, bad, 0]), 6)
    assert_same_bits(got, torch.stack([x[2], *torch.zeros(4, 2), x[0]]))
    guard.check("x")


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("bad", [-1, 6, BIG, -BIG - 1])
def test_ids_outside_read_zeros(bad, kind):
    table, bias = torch.randn(6, 40), torch.randn(40)
    y, mean, _ = native("layer_norm").embed_forward(
        torch.tensor([5, bad], dtype=kind), Guarded(table).tensor, torch.ones(40), bias, 1e-5
    )
    assert_same_bits(y[1], bias)
    assert mean[1] == 0 and y[0].isfinite().all()


HOSTILE = [(0, 5, 3, 10), (0, -1, 10), (0, BIG, 10), (-BIG - 1, 4, BIG), (9, 4, 10), (0, 4, 4), (20, 30, 40),
           (0, 10, 0, 10, 0, 10)]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 4, 64, BIG])
@pytest.mark.parametrize("bounds", HOSTILE, ids=str)
def test_hostile_bounds_give_tiles_inside(bounds, rows):
    tiles = native("padding").tiles(Guarded(torch.tensor(bounds, dtype=torch.int32)).tensor, 10, rows)
    texts = len(bounds) - 1
    assert tiles.shape == (10 // rows + texts, 2)
    assert tiles[:, 0].ge(-1).all() and tiles[:, 0].lt(texts).all()
    assert tiles[:, 1].ge(0).all() and tiles[:, 1].lt(10).all()


@pytest.mark.parametrize("C", [1025, 1032, 2049, 4104, 8192])
def test_rows_that_warps_share(C):
    for T in (1, 3):
        checks.check_accuracy(problems.layer_norm(T, C, F32, CPU, residual=F32, weight=F32, bias=F32))
    checks.check_repeats(problems.layer_norm(3, C, torch.bfloat16, CPU, weight=F32), times=3)


def test_too_wide_rows_are_refused():
    with pytest.raises(dispatch.NoBackend, match="does not take width 8193"):
        ops.layer_norm(torch.ones(2, 8193))
    with pytest.raises(ValueError, match="rows of 8193 columns: at most 8192"):
        native("layer_norm").forward(torch.ones(2, 8193), None, None, None, 1e-5)


def test_more_rows_than_blocks_add_up():
    """The backward's blocks go round: 296 of eight rows."""
    checks.check_accuracy(problems.layer_norm(2400, 8, F32, CPU, weight=F32, bias=F32))


def test_long_masks_go_round():
    mask = torch.arange(2 * 1300).view(2, 1300) % 3 != 0
    mask[1, :700] = False
    checks.check_accuracy(problems.plan(lambda draw: mask, CPU))


def test_many_texts_go_round():
    checks.check_accuracy(problems.tiles((3, 0, 65, 1) * 150, 16, CPU))
    checks.check_accuracy(problems.plan(lambda draw: draw.integers(0, 2, 600, 5), CPU))


@pytest.mark.parametrize("C", [8, 13])
@pytest.mark.parametrize("op", ["padding", "layer_norm", "geglu"])
def test_offsets_beyond_32_bits(op, C):
    x, dy, order = torch.randn(3, 2 * C), torch.randn(3, C), torch.tensor([2, 0, 1])
    stats = torch.zeros(3), torch.ones(3)
    kernels = native(op)
    calls = {
        "padding": [lambda x, dy: kernels.unpad(x, order), lambda x, dy: kernels.pad(x, order, 4)],
        "layer_norm": [
            lambda x, dy: kernels.forward(x, x, None, None, 1e-5),
            lambda x, dy: kernels.backward(x, x, x, None, True, *stats),
            lambda x, dy: kernels.embed_forward(order, x, None, None, 1e-5),
        ],
        "geglu": [lambda x, dy: kernels.forward(x), lambda x, dy: kernels.backward(dy, x)],
    }
    far, far_dy = memory.far_apart(x), memory.far_apart(dy)
    for call in calls[op]:
        for got, expected in zip(call(far, far_dy), call(x, dy), strict=True):
            assert_same_bits(got, expected)
