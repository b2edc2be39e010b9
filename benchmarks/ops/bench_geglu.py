"""Bytes moved: both halves read once, one written."""

from harness import both

from modernbert_fast.testing import problems


def cases(T, dtype, device):
    for F in (1152, 2624):
        bytes = 3 * T * F * dtype.itemsize
        yield from both(f"({T}, {2 * F})", problems.geglu(T, F, dtype, device), bytes, backward=5 / 3)
