"""Bytes moved: both halves read once, one written; the backward reads one more and writes two."""

from harness import Case, apart, both, rows_beyond_cache, with_compiled

from modernbert_fast.testing import problems

BACKWARD = 5 / 3


def cases(T, dtype, device):
    for F in (1152, 2624):
        bytes = 3 * T * F * dtype.itemsize
        yield from both(f"({T}, {2 * F})", problems.geglu(T, F, dtype, device), bytes, backward=BACKWARD)


def model_cases(config, lengths, dtype, device):
    T, F = sum(lengths), config.intermediate_size
    problem, checked = (problems.geglu(rows, F, dtype, device) for rows in (T, min(T, 1024)))
    yield from apart("geglu", problem, checked, 3 * T * F * dtype.itemsize, backward=BACKWARD, rivals=with_compiled)


def large_cases(dtype, device):
    for F in (1152, 2624):
        row = 3 * F * dtype.itemsize
        T = rows_beyond_cache(row)
        problem = problems.geglu(T, F, dtype, device).but(grads=())
        yield Case(f"({T}, {2 * F})", problem, T * row, large=True)
