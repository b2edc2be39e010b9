"""Bytes read: a score and two bounds a document; what is found is little."""

from harness import both

from modernbert_fast.testing import problems


def cases(T, dtype, device):
    for N in (T, 16 * T):
        yield from both(f"10 best of {N} scores", problems.ranking(1, N, 10, dtype, device), N * (dtype.itemsize + 4))
