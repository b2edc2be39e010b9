"""Bytes moved: four bits and one byte an element, and two bytes a vector; centroids and levels stay in cache."""

from harness import both

from modernbert_fast.testing import problems


def cases(T, dtype, device):
    D, centroids = 128, 256
    problem = problems.decompress(T, centroids, D, device)
    yield from both(f"{T} vectors of {D}", problem, T * (D // 2 + 2 + D))
