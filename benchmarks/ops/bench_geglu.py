"""Bytes moved: both halves read once, one written."""

from harness import Case, both, rows_beyond_cache

from modernbert_fast.testing import problems


def cases(T, dtype, device):
    for F in (1152, 2624):
        bytes = 3 * T * F * dtype.itemsize
        yield from both(f"({T}, {2 * F})", problems.geglu(T, F, dtype, device), bytes, backward=5 / 3)


def large_cases(dtype, device):
    for F in (1152, 2624):
        row = 3 * F * dtype.itemsize
        T = rows_beyond_cache(row)
        problem = problems.geglu(T, F, dtype, device).but(grads=())
        yield Case(f"({T}, {2 * F})", problem, T * row, large=True)
