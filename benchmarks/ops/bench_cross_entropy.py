"""Flops of the labelled rows' logits; bytes of the decoder, read once."""

from harness import both

from modernbert_fast.testing import problems


def cases(T, dtype, device):
    C, V, labelled = 768, 4096 if T < 4096 else 50368, 0.3
    problem = problems.cross_entropy(T, C, V, dtype, device, labelled=labelled)
    rows = int(labelled * T)
    yield from both(f"{rows} of {T} rows, {V} words", problem, V * C * dtype.itemsize, 2 * rows * C * V, backward=3.0)
