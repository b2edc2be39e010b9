"""The four products of a base layer: flops of each, bytes of both factors and the result."""

from harness import both

from modernbert_fast.testing import problems


def cases(T, dtype, device):
    for name, K, N in (("Wqkv", 768, 2304), ("Wo", 768, 768), ("Wi", 768, 2304), ("mlp.Wo", 1152, 768)):
        problem = problems.linear(T, K, N, dtype, device)
        bytes = (T * K + N * K + T * N) * dtype.itemsize
        yield from both(f"{name} ({T}, {K}) x ({N}, {K})", problem, bytes, 2 * T * K * N)
