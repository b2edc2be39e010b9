"""Bytes moved: every kept row is read and written once, and every row of the grid is written once."""

from harness import both

from modernbert_fast.testing import problems


def cases(T, dtype, device):
    rows, C = 2 * T, 768
    kept = T * C * dtype.itemsize
    yield from both(f"unpad ({rows}, {C}) to {T} rows", problems.unpad(rows, (C,), T, dtype, device), 2 * kept)
    yield from both(f"pad {T} rows to ({rows}, {C})", problems.pad(rows, (C,), T, dtype, device), 3 * kept)
