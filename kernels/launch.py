"""Where every kernel is launched, and the tables of block sizes and warps.

A choice depends on the architecture, the dtype and the sizes of the layer, never on the batch, so that a text's bits do
not depend on its neighbours. Nothing here asks for a GPU at import.
"""

import functools
from typing import Any, NamedTuple

import torch

# Multiprocessors of the largest chip of each architecture: what a persistent kernel fills. Others count as sm_90.
_PROCESSORS = {(7, 5): 72, (8, 0): 108, (8, 6): 84, (8, 9): 144, (9, 0): 132, (10, 0): 148, (12, 0): 188}


# Whether products and sums fuse decides bits, and the default changes in Triton 3.10. A kernel may ask for APART.
FUSED, APART = {"enable_fp_fusion": True}, {"enable_fp_fusion": False}


def start(kernel: Any, grid: tuple[int, ...], x: torch.Tensor, *args: Any, **options: Any) -> None:
    """Launches on the device of `x`."""
    with torch.cuda.device_of(x):
        kernel[grid](*args, **{**FUSED, **options})


def capability(x: torch.Tensor) -> tuple[int, int] | None:
    """Of the GPU that holds `x`; None for the interpreter."""
    return _capability(x.device) if x.is_cuda else None


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def inner_dense(x: torch.Tensor) -> torch.Tensor:
    """`x`, copied unless the steps of its last dimension are of one element, as kernels read it."""
    return x if x.stride(-1) == 1 else x.contiguous()


def dense(x: torch.Tensor | None) -> torch.Tensor | None:
    """`x` without gaps; None passes."""
    return None if x is None else x.contiguous()


def result(x: torch.Tensor, shape: Any, entries: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A new tensor like `x` for a kernel whose programs stand for `entries`; zeros where there is none to write it."""
    return (x.new_empty if entries.shape[0] else x.new_zeros)(shape, dtype=dtype or x.dtype)


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
    return Rows(max(1, 1024 // width), width, max(4, min(16, width // 256)))


def persistent(x: torch.Tensor, tiles: int) -> int:
    """Programs of a kernel that loops over `tiles` tiles: two a multiprocessor, which bounds its partial sums."""
    return min(tiles, 2 * _PROCESSORS.get(capability(x) or (9, 0), 132))


# Numbers that a program takes at a time, walking along a row of the mask, a batch's bounds or its tiles.
LINE = {"BLOCK": 1024, "num_warps": 4}


def moves(W: int) -> Rows:
    """For kernels that move rows of W integers: 1,024 at a time, of one row at most 256."""
    width = min(256, power_of_two(W))
    return Rows(1024 // width, width, 4)


# 128 columns divide 1,152 and waste 2 % of 2,624; eight elements a thread.
GEGLU = {"ROWS": 8, "COLUMNS": 128, "num_warps": 4}


def rope(half: int) -> Rows:
    """Halves of heads, about 1,024 elements of each at a time."""
    width = power_of_two(half, 8)
    return Rows(max(1, 1024 // width), width, 4)


def logits_rows(V: int) -> int:
    """Rows whose V logits exist at one time: 2,048 at ModernBERT's 50,368, where a product is long beside a launch."""
    return max(1, min(2048, 2**27 // max(V, 1)))


def logits(V: int) -> Rows:
    """For kernels that walk along rows of V logits: eight a thread, and few rows at a time, so that L2 holds them."""
    width = min(4096, power_of_two(V, 16))
    return Rows(4096 // width, width, 16)


TILE = 64  # queries of an entry of the tile schedule

# Attention: pass and layer -> queries, keys, warps, stages; for heads up to 64 columns, and up to 128. None spills
# (python -m benchmarks.compile_report). A block of keys is the own block of "dkv", of queries that of the others.
# mma.sync spreads warps over the own rows only, 16 a warp: more warps than that repeat each other's work.
_MMA = {
    "fwd windowed": ((64, 64, 4, 2), (64, 32, 4, 1)),
    "fwd global": ((128, 64, 8, 2), (128, 32, 8, 2)),
    "dq": ((64, 32, 4, 2), (128, 32, 8, 2)),
    "dkv": ((32, 64, 4, 1), (16, 128, 8, 1)),
}
_ATTENTION = {
    8: _MMA,
    9: {
        "fwd windowed": ((64, 64, 4, 2), (64, 32, 4, 2)),
        "fwd global": ((128, 64, 8, 3), (128, 64, 8, 3)),
        "dq": ((64, 64, 4, 2), (64, 32, 4, 2)),
        "dkv": ((64, 64, 4, 2), (32, 128, 8, 2)),
    },
    10: {
        "fwd windowed": ((64, 64, 4, 2), (64, 64, 4, 2)),
        "fwd global": ((128, 64, 8, 3), (128, 64, 8, 3)),
        "dq": ((64, 64, 4, 2), (64, 32, 4, 2)),
        "dkv": ((64, 64, 4, 2), (32, 64, 4, 2)),
    },
    12: _MMA
    | {
        "fwd windowed": ((64, 32, 4, 2), (64, 32, 4, 1)),
        "dkv": ((32, 64, 4, 2), (16, 128, 8, 1)),
    },
}
# In fp32, which multiplies without tensor cores.
_ATTENTION_FP32 = {"fwd": ((32, 16, 4, 1), (16, 16, 8, 1)), "dq": ((32, 16, 4, 1), (16, 16, 8, 1)),
                   "dkv": ((32, 16, 4, 1), (16, 16, 8, 1))}  # fmt: skip


def attention(kind: str, qkv: torch.Tensor, windowed: bool) -> dict[str, int]:
    """Blocks of the pass "fwd", "dq" or "dkv"."""
    chip = capability(qkv)
    table = (
        _ATTENTION_FP32 if chip and qkv.dtype == torch.float32 else _ATTENTION.get((chip or (9, 0))[0], _ATTENTION[9])
    )
    blocks = table.get(kind) or table[f"{kind} {'windowed' if windowed else 'global'}"]
    m, n, warps, stages = blocks[qkv.shape[3] > 64]
    return {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages}


def rotates_inside(kind: str, qkv: torch.Tensor, windowed: bool) -> bool:
    """Whether the pass "fwd" or "bwd" turns keys (and queries) as it meets them, rather than all of them before.

    Under a window a key is met three times. In the backward that costs registers which mma.sync has not left.
    """
    return windowed and qkv.shape[3] <= 64 and (kind == "fwd" or (capability(qkv) or (9, 0))[0] in (9, 10))


# MaxSim: pass -> queries, documents, columns, warps, stages; for rows of up to 128 columns, and wider ones. A query is
# 32 tokens as a rule, memory sets the pace, and many programs a multiprocessor hide its latency. A longer query meets a
# document 128 tokens at a time, else the second cache sets the pace.
_MAXSIM = {
    "fwd": ((32, 64, 128, 4, 3), (32, 64, 64, 4, 2)),
    "fwd int8": ((32, 64, 128, 4, 3), (32, 64, 64, 8, 2)),
    "fwd long": ((128, 64, 128, 4, 2), (128, 64, 64, 8, 2)),
    "dd": ((32, 64, 128, 4, 3), (32, 64, 128, 4, 3)),
}
# In fp32, which multiplies without tensor cores.
_MAXSIM_FP32 = {kind: ((16, 32, 32, 8 if kind == "fwd int8" else 4, 1),) * 2 for kind in _MAXSIM}


def maxsim(kind: str, q: torch.Tensor) -> dict[str, Any]:
    """Blocks of the pass "fwd", "fwd int8" by its documents, "fwd long" by its queries, "dq", which gathers, "dd"."""
    D = q.shape[1]
    if kind == "dq":
        return {"BLOCK_N": 16, "BLOCK_D": min(128, power_of_two(D, 16)), "num_warps": 4}
    table = _MAXSIM_FP32 if capability(q) and q.dtype == torch.float32 else _MAXSIM
    m, n, columns, warps, stages = table[kind][D > 128]
    width = min(columns, power_of_two(D, 16))
    blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": width, "num_warps": warps, "num_stages": stages}
    if table is _MAXSIM_FP32 and D <= 128 and kind != "dd":
        blocks["maxnreg"] = 144  # left to itself, the assembler spills one to make room for a program more
    precision = {"PRECISION": "ieee" if q.dtype == torch.float32 else "tf32"}
    return blocks | precision | ({"WHOLE": D <= width} if kind.startswith("fwd") else {})


def maxsim_forward(q: torch.Tensor, d: torch.Tensor, queries: int, winners: bool) -> list[dict[str, Any]]:
    """Blocks of each launch that scores need, for queries of more than ABOVE and up to UP_TO tokens; None is all.

    The blocks of a query depend on its own length. Winners need registers, so they keep the small ones.
    """
    short, long = maxsim("fwd int8" if d.dtype == torch.int8 else "fwd", q), maxsim("fwd long", q)
    tile = short["BLOCK_M"]
    if winners or tile == long["BLOCK_M"]:
        return [short | {"ABOVE": None, "UP_TO": None}]
    if len(q) <= tile:
        return [short | {"ABOVE": -1, "UP_TO": tile}]
    if queries == 1:
        return [long | {"ABOVE": None, "UP_TO": None}]
    return [short | {"ABOVE": -1, "UP_TO": tile}, long | {"ABOVE": tile, "UP_TO": 2**31 - 1}]


def ranking(N: int) -> dict[str, int]:
    """Scores that a program takes the best of, 16 a thread: few programs' findings have to be ranked again."""
    return {"BLOCK": 1024, "num_warps": 4} if N <= 1024 else {"BLOCK": 8192, "num_warps": 16}
