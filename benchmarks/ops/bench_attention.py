"""Flops of the two products over the pairs that see one another; bytes of qkv and the output."""

from harness import both

from modernbert_fast.testing import problems


def cases(T, dtype, device):
    H, D = 12, 64
    lengths = (T // 2, T // 4, T // 8, T // 8)
    for window in (-1, 64):
        pairs = sum(_seen(i, n, window) for n in lengths for i in range(n))
        problem = problems.attention(lengths, H, D, dtype, device, window=window)
        name = f"{'global' if window < 0 else f'window {window}'}, texts of {', '.join(map(str, lengths))}"
        yield from both(name, problem, 4 * T * H * D * dtype.itemsize, 4 * pairs * H * D, backward=2.5)


def _seen(i, length, window):
    """Keys that query i of a text sees."""
    return length if window < 0 else min(length, i + window + 1) - max(0, i - window)
