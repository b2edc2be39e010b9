"""Bytes moved: qkv read and written once."""

from harness import both

from modernbert_fast.testing import problems


def cases(T, dtype, device):
    H, D = 12, 64
    bytes = 2 * T * 3 * H * D * dtype.itemsize
    yield from both(f"({T}, 3, {H}, {D})", problems.rope(T, H, D, dtype, device, far=8192), bytes, backward=1.0)
