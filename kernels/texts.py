"""Where a program's text lies, inside the tensors whatever cu_seqlens says; what kernels of several ops share."""

import triton
import triton.language as tl


@triton.jit
def bounds(cu_seqlens_ptr, text, T, valid=True):
    """First row and end of a text, inside [0, T]; of no rows where it is not valid."""
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + text, mask=valid, other=0), 0), T)
    return start, tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + text + 1, mask=valid, other=0), start), T)


@triton.jit
def own_rows(tiles_ptr, cu_seqlens_ptr, B, T, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """First row and end of the program's text, the program's first row, the text; no rows if the program has none.

    Entries of the schedule are TILE rows apart: a larger block takes every so manieth, a smaller one shares an entry.
    """
    share: tl.constexpr = TILE // BLOCK if BLOCK < TILE else 1
    entry = tiles_ptr + (tl.program_id(0) // share).to(tl.int64) * 2
    text, first = tl.load(entry), tl.load(entry + 1)
    used = (text >= 0) & (text < B) & (first >= 0) & (first % BLOCK == 0 if BLOCK > TILE else True)
    text = tl.where(used, text, 0).to(tl.int64)
    start, end = bounds(cu_seqlens_ptr, text, T, used)
    first = start + tl.minimum(first, T - start) + (tl.program_id(0) % share) * BLOCK
    return start, end, tl.where(used, first, end), text


@triton.jit
def clear(base, stride, width, cu_seqlens_ptr, B, T, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Program 0 writes zeros in the rows before the first text and behind the last, which no other program writes.

    There are none unless cu_seqlens is wrong. Of a row of `width` elements the first BLOCK are written.
    """
    if tl.program_id(0) == 0:
        low = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr), 0), T)
        high = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + B), 0), T)
        c = tl.arange(0, BLOCK)
        for first in range(0, low + (T - high), ROWS):
            i = first + tl.arange(0, ROWS)
            t = tl.where(i < low, i, i - low + high).to(tl.int64)
            zero = tl.zeros((ROWS, BLOCK), base.dtype.element_ty)
            tl.store(base + t[:, None] * stride + c[None, :], zero, mask=(t < T)[:, None] & (c < width)[None, :])


@triton.jit
def ordered(x):
    """fp32 -> int32 that order as the numbers do, NaN above all; `number` undoes it."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x != x, 2**31 - 1, bits ^ ((bits >> 31) & (2**31 - 1)))


@triton.jit
def number(order):
    """int32 of `ordered` -> fp32."""
    return (order ^ ((order >> 31) & (2**31 - 1))).to(tl.float32, bitcast=True)
