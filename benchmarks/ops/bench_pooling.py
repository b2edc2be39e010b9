"""Bytes moved: each row that counts is read once."""

from harness import both

from modernbert_fast.testing import problems


def cases(T, dtype, device):
    C, lengths = 768, tuple(T // 16 for _ in range(16))
    bytes = {"cls": len(lengths) * C * dtype.itemsize, "mean": T * C * dtype.itemsize}
    for mode in ("cls", "mean"):
        problem = problems.pooling(lengths, C, dtype, device, mode=mode, normalize=True)
        yield from both(f"{mode}, {len(lengths)} texts of {lengths[0]}", problem, bytes[mode], backward=1.0)
