"""Bytes moved: each input row read once, each result row written once.

The backward reads the row and the gradients of what was written, and writes one: 3 passes, or 4 with a residual.
"""

from harness import Case, apart, both, rows_beyond_cache, with_compiled

from modernbert_fast.testing import problems

ALONE, FUSED = 1.5, 1.0  # backward in units of the forward


def cases(T, dtype, device):
    for C in (768, 1024):
        row = T * C * dtype.itemsize
        alone = problems.layer_norm(T, C, dtype, device, weight=dtype)
        fused = problems.layer_norm(T, C, dtype, device, residual=dtype, weight=dtype)
        embedding = problems.embed_layer_norm(T, 4096 if T < 4096 else 50368, C, dtype, device)
        yield from both(f"layer norm ({T}, {C})", alone, 2 * row, backward=ALONE)
        yield from both(f"add and layer norm ({T}, {C})", fused, 4 * row, backward=FUSED)
        yield both(f"gather and layer norm ({T}, {C})", embedding, 2 * row)[0]


def model_cases(config, lengths, dtype, device):
    """What every layer does twice, and what opens the model."""
    T, C, few = sum(lengths), config.hidden_size, min(sum(lengths), 1024)
    row = T * C * dtype.itemsize
    fused, small = (problems.layer_norm(n, C, dtype, device, residual=dtype, weight=dtype) for n in (T, few))
    yield from apart("add and layer norm", fused, small, 4 * row, backward=FUSED, rivals=with_compiled)
    alone, small = (problems.layer_norm(n, C, dtype, device, weight=dtype) for n in (T, few))
    yield from apart("layer norm", alone, small, 2 * row, backward=ALONE, rivals=with_compiled)


def large_cases(dtype, device):
    for C in (768, 1024):
        for name, residual, rows in (("layer norm", None, 2), ("add and layer norm", dtype, 4)):
            row = rows * C * dtype.itemsize
            T = rows_beyond_cache(row)
            problem = problems.layer_norm(T, C, dtype, device, residual=residual, weight=dtype).but(grads=())
            yield Case(f"{name} ({T}, {C})", problem, T * row, large=True)
