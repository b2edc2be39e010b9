"""Memory that tells: poisoned allocations, guard bands and unreadable pages around inputs, a dirty allocator."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from modernbert_fast.testing.errors import bits

GUARD_BYTES = 4096
LAYOUTS = ("contiguous", "sliced", "permuted")
SIDES = ("start", "end")

_ALLOCATORS = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch.Tensor, "new_empty"),
    (torch.Tensor, "new_empty_strided"),
)


def poison(x: torch.Tensor) -> torch.Tensor:
    """Fills with what no result may hold: NaN, or 0x7F in every byte."""
    if x.is_floating_point():
        return x.fill_(float("nan"))
    return x.fill_(True) if x.dtype == torch.bool else x.fill_(int.from_bytes(b"\x7f" * x.element_size(), "little"))


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Within the block, uninitialised tensors that the package asks for are full of poison."""

    def patched(allocate: Any) -> Any:
        def allocate_poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
            x = allocate(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            return poison(x) if caller.startswith("modernbert_fast.") and type(x) is torch.Tensor else x

        return allocate_poisoned

    originals = [getattr(owner, name) for owner, name in _ALLOCATORS]
    for (owner, name), original in zip(_ALLOCATORS, originals, strict=True):
        setattr(owner, name, patched(original))
    try:
        yield
    finally:
        for (owner, name), original in zip(_ALLOCATORS, originals, strict=True):
            setattr(owner, name, original)


def far_apart(x: torch.Tensor) -> torch.Tensor:
    """The same rows on the CPU 2^31 + 16 elements apart, in memory that is never touched between them."""
    step, inside = 2**31 + 16, x[0].numel()
    size = (step * (x.shape[0] - 1) + inside + 8) * x.element_size()
    no_reserve = 0x4000  # Linux's MAP_NORESERVE, which the module does not always name
    memory = torch.frombuffer(
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve), dtype=x.dtype
    )
    return memory.as_strided(x.shape, (step, *x[0].contiguous().stride())).copy_(x)


class Guarded:
    """A copy of a tensor between guard bands full of poison, in a chosen layout and off any alignment.

    Args:
        x: what to copy.
        layout: "contiguous"; "sliced", rows further apart than they are long, poison between them; "permuted", dense
            with the last dimension not contiguous.
    """

    def __init__(self, x: torch.Tensor, layout: str = "contiguous"):
        sizes, axes = list(x.shape), list(range(x.dim()))
        if layout == "permuted":
            sizes, axes = sizes[::-1], axes[::-1]
        stored = [*sizes[:-1], sizes[-1] + 5] if layout == "sliced" and sizes else sizes
        guard = GUARD_BYTES // x.element_size() + 1
        dense = torch.empty(stored, device="meta").stride()
        span = 1 + sum((size - 1) * stride for size, stride in zip(sizes, dense, strict=True))
        self._buffer = poison(torch.empty(max(span, 0) + 2 * guard, dtype=x.dtype, device=x.device))
        self.tensor = self._buffer.as_strided(sizes, dense, guard).permute(axes)
        self.tensor.copy_(x)
        self._before = bits(self._buffer).clone()

    def check(self, name: str) -> None:
        """Raises AssertionError if a byte of the tensor, or around it, has changed."""
        changed = (bits(self._buffer) != self._before).nonzero()
        assert not changed.numel(), f"{name} or its surroundings were written to, first at element {changed[0].item()}"


def fenced(x: torch.Tensor, side: str) -> torch.Tensor:
    """A contiguous copy, read-only, whose "start" or "end" touches a page that nobody may read: one element too far,
    or a write, kills the process there and then. Linux and the CPU only."""
    assert side in SIDES, side
    size = x.numel() * x.element_size()
    if size == 0:
        return x.clone(memory_format=torch.contiguous_format)
    page = mmap.PAGESIZE
    room = -(-size // page) * page
    pages = mmap.mmap(-1, page + room + page)
    offset = page if side == "start" else page + room - size
    copy = torch.frombuffer(pages, dtype=x.dtype, count=x.numel(), offset=offset).view(x.shape).copy_(x)
    first = copy.data_ptr() - offset
    for place, length, allowed in ((0, page, 0), (page, room, mmap.PROT_READ), (page + room, page, 0)):
        if _mprotect()(first + place, length, allowed):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return copy


@functools.cache
def _mprotect() -> Any:
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return mprotect


def dirty_allocator(results: Sequence[torch.Tensor]) -> None:
    """Frees poisoned blocks of the sizes of `results`, for the next allocations to find."""
    for _ in range(4):
        blocks = [poison(torch.empty(x.numel(), dtype=x.dtype, device=x.device)) for x in results]
        del blocks
