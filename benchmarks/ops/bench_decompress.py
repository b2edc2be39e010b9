"""Bytes moved: four bits and one byte an element, and two bytes a vector; centroids and levels stay in cache."""

from harness import Case

from modernbert_fast.testing import compressed


def cases(T, dtype, device):
    D, centroids = 128, 256
    yield Case(f"{T} vectors of {D}", compressed.decompress(T, centroids, D, device), T * (D // 2 + 2 + D))
