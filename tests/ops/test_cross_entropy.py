"""Cross entropy: any share of labelled rows, none at all, chunk edges, large logits, labels out of range."""

import pytest
import torch

from modernbert_fast import ops
from modernbert_fast.testing import checks, problems

OP = "cross_entropy"
SIZES = [
    (0, 8, 5), (1, 1, 1), (2, 7, 3), (17, 16, 130), (65, 33, 257), (130, 64, 1025),
    pytest.param(1025, 8, 17, marks=pytest.mark.heavy), pytest.param(600, 24, 64, marks=pytest.mark.heavy),
]  # fmt: skip


@pytest.mark.parametrize("T, C, V", SIZES)
@pytest.mark.parametrize("labelled", [0.0, 0.3, 1.0])
def test_accuracy(backend, device, dtype, T, C, V, labelled):
    problem = problems.cross_entropy(T, C, V, dtype, device, bias=labelled != 0.3, labelled=labelled)
    checks.check_accuracy(problem, "sliced" if T % 2 else "permuted")


def test_nothing_labelled_is_no_loss(backend, device, dtype):
    inputs = problems.cross_entropy(9, 8, 5, dtype, device, labelled=0.0).inputs()
    x = inputs["x"].requires_grad_()
    loss = ops.cross_entropy(**inputs)
    assert loss.eq(0).all()
    loss.sum().backward()
    assert x.grad.eq(0).all()


def test_bad_rows_without_a_label_do_not_matter(backend, device, dtype):
    """NaN in a row that has no label reaches neither the loss nor any gradient."""
    inputs = problems.cross_entropy(9, 8, 5, dtype, device, labelled=0.5).inputs()
    inputs["x"][inputs["labels"] == -100] = float("nan")
    for name in ("x", "weight", "bias"):
        inputs[name] = inputs[name].detach().requires_grad_()
    ops.cross_entropy(**inputs).sum().backward()
    for name in ("x", "weight", "bias"):
        assert inputs[name].grad.isfinite().all(), name


def test_large_logits(backend, device, dtype):
    problem = problems.cross_entropy(33, 16, 50, dtype, device, labelled=0.8)

    def draw(draw):
        inputs = problem.draw(draw)
        return inputs | {"weight": 300 * inputs["weight"]}

    checks.check_accuracy(problem.but(draw=draw))


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("ignore_index", [-100, -1, 3])
def test_labels(backend, device, kind, ignore_index):
    inputs = problems.cross_entropy(9, 8, 5, torch.float32, device, labelled=1.0).inputs()
    inputs["labels"] = torch.tensor([0, 1, 2, 3, 4, 3, 2, ignore_index, ignore_index], device=device, dtype=kind)
    loss = ops.cross_entropy(**inputs, ignore_index=ignore_index)
    logits = torch.nn.functional.linear(inputs["x"], inputs["weight"], inputs["bias"])
    labels = inputs["labels"].long()
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=ignore_index)
    torch.testing.assert_close(loss, plain)


@pytest.mark.parametrize("value", [-1, 5, 2**31 - 1, -(2**31), -101])
def test_refuses_labels(backend, device, value):
    if device.type != "cpu":
        pytest.skip("values on a device are not read")
    problem = problems.cross_entropy(9, 8, 5, torch.float32, device)
    inputs = problem.inputs()
    inputs["labels"][4] = value
    checks.check_refuses(lambda: ops.cross_entropy(**inputs), IndexError, problem)


def test_refuses(backend, device):
    problem = problems.cross_entropy(9, 8, 5, torch.float32, device)
    inputs = problem.inputs()
    for name, change, error in (
        ("x", lambda x: x[:, 1:], ValueError),
        ("x", lambda x: x.long(), TypeError),
        ("bias", lambda x: x[1:], ValueError),
        ("labels", lambda x: x[1:], ValueError),
        ("labels", lambda x: x.float(), TypeError),
        ("weight", lambda x: x.to("meta"), ValueError),
    ):
        changed = inputs | {name: change(inputs[name])}
        checks.check_refuses(lambda changed=changed: ops.cross_entropy(**changed), error, problem)
