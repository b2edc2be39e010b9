"""A base layer with the window: flops of its products and the keys in reach, bytes of its weights and activations."""

from harness import Case

from modernbert_fast.testing import problems

C, F, WINDOW = 768, 1152, 64


def cases(T, dtype, device):
    for lengths in ((64,), (T,)):
        tokens = sum(lengths)
        problem = problems.encoder_layer(lengths, C // 64, 64, F, dtype, device, window=WINDOW)
        weights = 4 * C * C + 3 * C * F
        keys = min(tokens, 2 * WINDOW + 1)
        bytes = (weights + tokens * (14 * C + 2 * F)) * dtype.itemsize
        yield Case(f"{tokens} tokens", problem, bytes, 2 * tokens * (weights + 2 * keys * C))
