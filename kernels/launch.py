"""Where every kernel is launched, and the tables of block sizes and warps.

A choice depends on the architecture, the dtype and the sizes of the layer, never on the batch, so that a text's bits do
not depend on its neighbours. Nothing here asks for a GPU at import.
"""

import functools
from typing import Any, NamedTuple

import torch

# Multiprocessors of the largest chip of each architecture: what a persistent kernel fills. Others count as sm_90.
_PROCESSORS = {(7, 5): 72, (8, 0): 108, (8, 6): 84, (8, 9): 144, (9, 0): 132, (10, 0): 148, (12, 0): 188}


def start(kernel: Any, grid: tuple[int, ...], x: torch.Tensor, *args: Any, **options: Any) -> None:
    """Launches on the device of `x`. Fused products and sums decide bits, and their default changes in Triton 3.10."""
    with torch.cuda.device_of(x):
        kernel[grid](*args, enable_fp_fusion=True, **options)


def capability(x: torch.Tensor) -> tuple[int, int]:
    """Of the GPU that holds `x`; of an H100 for the interpreter."""
    return _capability(x.device) if x.is_cuda else (9, 0)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def inner_dense(x: torch.Tensor) -> torch.Tensor:
    """`x`, copied unless the steps of its last dimension are of one element, as kernels read it."""
    return x if x.stride(-1) == 1 else x.contiguous()


def dense(x: torch.Tensor | None) -> torch.Tensor | None:
    """`x` without gaps; None passes."""
    return None if x is None else x.contiguous()


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is not below `n` nor below `least`."""
    return max(least, 1 << max(n - 1, 0).bit_length())


class Rows(NamedTuple):
    """A tile of whole rows.

    Attributes:
        rows: rows at a time; several where they are short.
        width: row length, a power of two.
        warps: threads / 32; eight elements a thread where the row is long enough.
    """

    rows: int
    width: int
    warps: int


def rows(C: int) -> Rows:
    """For kernels that keep rows of C in registers: about 1,024 elements, at most 8,192."""
    width = power_of_two(C, 16)
    return Rows(max(1, 1024 // width), width, max(4, min(16, width // 512)))


def persistent(x: torch.Tensor, tiles: int) -> int:
    """Programs of a kernel that loops over `tiles` tiles: two a multiprocessor, which bounds its partial sums."""
    return min(tiles, 2 * _PROCESSORS.get(capability(x), 132))


# 128 columns divide 1,152 and waste 2 % of 2,624; eight elements a thread.
GEGLU = {"ROWS": 8, "COLUMNS": 128, "num_warps": 4}


def rope(half: int) -> Rows:
    """Halves of heads, about 1,024 elements of each at a time."""
    width = power_of_two(half, 8)
    return Rows(max(1, 1024 // width), width, 4)
