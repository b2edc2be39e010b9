"""Bytes moved: each input row read once, each result row written once."""

from harness import Case, both, rows_beyond_cache

from modernbert_fast.testing import problems


def cases(T, dtype, device):
    for C in (768, 1024):
        row = T * C * dtype.itemsize
        alone = problems.layer_norm(T, C, dtype, device, weight=dtype)
        fused = problems.layer_norm(T, C, dtype, device, residual=dtype, weight=dtype)
        embedding = problems.embed_layer_norm(T, 4096 if T < 4096 else 50368, C, dtype, device)
        yield from both(f"layer norm ({T}, {C})", alone, 2 * row)
        yield from both(f"add and layer norm ({T}, {C})", fused, 4 * row)
        yield both(f"gather and layer norm ({T}, {C})", embedding, 2 * row)[0]


def large_cases(dtype, device):
    for C in (768, 1024):
        for name, residual, rows in (("layer norm", None, 2), ("add and layer norm", dtype, 4)):
            row = rows * C * dtype.itemsize
            T = rows_beyond_cache(row)
            problem = problems.layer_norm(T, C, dtype, device, residual=residual, weight=dtype).but(grads=())
            yield Case(f"{name} ({T}, {C})", problem, T * row, large=True)
