"""Compiles every Triton kernel for every chip, without a GPU, and prints what it costs: python benchmarks/run.py
compile_report [--chips 80 90] [--short].

A line is a kernel in one case, a column a chip: registers of a thread, KiB of shared memory, tensor core instructions.
Exits with 1 if a kernel spills, takes more shared memory than the chip has, or lacks tensor cores where it multiplies.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
CHIPS = (75, 80, 86, 89, 90, 100, 120)
# Not offered below sm_80, where Triton has no tensor cores; and of their kernels the one that does not multiply.
MULTIPLY, GATHERS = ("attention", "maxsim"), "maxsim.bwd_q_kernel"
PRODUCTS = {8: "mma", 9: "wgmma", 10: "tcgen05", 12: "mma"}
T = 192

# On sm_120 the backward of keys spills this many bytes: beyond 64 columns, which no ModernBERT has, and of expanded
# queries, once, behind its loop (docs/decisions/0029).
KNOWN_SPILLS = {("attention.bwd_kv_kernel", case, 120): spilled for case, spilled in {
    "bfloat16 1x128 window": 16,
    "float16 1x128 window": 16,
    "bfloat16 1x64 global, expanded": 8,
    "float16 1x64 global, expanded": 8,
    "float32 1x64 global, expanded": 16,
    "float32 1x64 window, expanded": 8,
}.items()}  # fmt: skip


def layer_norm(kernels: Any, dtype: torch.dtype, C: int) -> None:
    x, ids, weight, stats = (
        torch.zeros(T, C, dtype=dtype),
        torch.zeros(T).long(),
        torch.zeros(C, dtype=dtype),
        torch.zeros(T),
    )
    kernels.forward(x, None, weight, None, 1e-5)
    kernels.forward(x, x, weight, weight, 1e-5)
    kernels.forward(x, x.float(), weight, None, 1e-5)
    kernels.embed_forward(ids, x, weight, None, 1e-5)
    kernels.backward(x, None, x, weight, False, stats, stats)
    kernels.backward(x, x, x, weight, True, stats, stats)


def geglu(kernels: Any, dtype: torch.dtype, F: int) -> None:
    x = torch.zeros(T, 2 * F, dtype=dtype)
    kernels.backward(kernels.forward(x), x)


def rope(kernels: Any, dtype: torch.dtype, D: int) -> None:
    table = torch.zeros(T, D // 2)
    kernels.forward(torch.zeros(T, 3, 768 // D, D, dtype=dtype), torch.zeros(T).int(), table, table)


def pooling(kernels: Any, dtype: torch.dtype, C: int) -> None:
    x, bounds = torch.zeros(T, C, dtype=dtype), torch.tensor([0, T], dtype=torch.int32)
    for mode in ("cls", "mean"):
        y, norm = kernels.forward(x, bounds, mode, True)
        kernels.backward(y, y, norm, bounds, mode, True, T)


def attention(
    kernels: Any, dtype: torch.dtype, D: int, window: int, holes: bool = False, expanded: bool = False
) -> None:
    table, positions = torch.zeros(T, D // 2), torch.zeros(T).int()
    qkv, bounds = torch.zeros(T, 3, 768 // D, D, dtype=dtype), torch.tensor([0, T], dtype=torch.int32)
    tiles = torch.zeros(4, 2, dtype=torch.int32)
    columns, attended = positions if holes else None, positions > 0 if expanded else None
    geometry = (bounds, positions, table, table, columns, attended, tiles, T, window, D**-0.5)
    o, lse = kernels.forward(qkv, *geometry)
    kernels.backward(o, qkv, o, lse, *geometry)


def padding(kernels: Any) -> None:
    bounds, indices = torch.tensor([0, T], dtype=torch.int32), torch.arange(T)
    kernels.tiles(bounds, T, 64)
    for dtype in (torch.bool, torch.int64):
        kernels.plan(torch.zeros(4, T, dtype=dtype))
    for C, dtype in ((768, BF16), (5, torch.uint8), (1, torch.int64)):
        kernels.pad(torch.zeros(T, C, dtype=dtype), indices, T)


def maxsim(kernels: Any, dtype: torch.dtype, D: int, pairwise: bool) -> None:
    x, bounds = torch.zeros(T, D, dtype=dtype), torch.tensor([0, T // 2, T], dtype=torch.int32)
    for d in (x, x.to(torch.int8)):
        kernels.forward(x, d, bounds, bounds, pairwise, False)
    scores, argmax = kernels.forward(x, x, bounds, bounds, pairwise, True)
    kernels.backward(scores, x, x, bounds, bounds, argmax, pairwise)


def ranking(kernels: Any, N: int) -> None:
    scores, bounds, allowed = torch.zeros(1, N), torch.zeros(N + 1).int(), torch.zeros(N).bool()
    kernels.forward(scores, bounds, None, None, 10)
    kernels.forward(scores, bounds, scores[0], allowed, 10)


def cross_entropy(kernels: Any, dtype: torch.dtype, V: int) -> None:
    x, weight, labels = torch.zeros(T, 8, dtype=dtype), torch.zeros(V, 8, dtype=dtype), torch.zeros(T).long()
    loss, lse = kernels.forward(x, weight, None, labels, -100)
    kernels.backward(loss, x, weight, None, labels, lse, -100, True, True, True)


def cases(short: bool) -> Iterator[tuple[str, str, Callable[[Any], None]]]:
    """Op, what is asked, and the call: ModernBERT-base in bf16, and unless `short` large, all dtypes and head dims."""
    yield "padding", "", padding
    for N in (1000, 4874):
        yield "ranking", f"10 best of {N}", lambda k, N=N: ranking(k, N)
    for dtype in (BF16,) if short else (BF16, F16, F32):
        name = str(dtype).removeprefix("torch.")
        for C in (768,) if short else (768, 1024, 4096):
            yield "layer_norm", f"{name} {C}", lambda k, dtype=dtype, C=C: layer_norm(k, dtype, C)
            yield "pooling", f"{name} {C}", lambda k, dtype=dtype, C=C: pooling(k, dtype, C)
        for F in (1152,) if short else (1152, 2624):
            yield "geglu", f"{name} {F}", lambda k, dtype=dtype, F=F: geglu(k, dtype, F)
        for V in (50368,) if short else (50368, 1000):
            yield "cross_entropy", f"{name} {V}", lambda k, dtype=dtype, V=V: cross_entropy(k, dtype, V)
        for D, pairwise in ((128, False),) if short else ((128, False), (128, True), (64, False), (768, False)):
            title = f"{name} 1x{D}{' pairs' if pairwise else ''}"
            yield "maxsim", title, lambda k, dtype=dtype, D=D, p=pairwise: maxsim(k, dtype, D, p)
        for D in (64,) if short else (32, 64, 128):
            yield "rope", f"{name} 1x{D}", lambda k, dtype=dtype, D=D: rope(k, dtype, D)
            for window in (-1, 64):
                title = f"{name} 1x{D} {'global' if window < 0 else 'window'}"
                yield "attention", title, lambda k, dtype=dtype, D=D, w=window: attention(k, dtype, D, w)
    if not short:
        yield "attention", "bfloat16 1x64 window, holes", lambda k: attention(k, BF16, 64, 64, holes=True)
    for dtype in (BF16,) if short else (BF16, F16, F32):
        for window in (-1, 64):
            title = f"{str(dtype).removeprefix('torch.')} 1x64 {'global' if window < 0 else 'window'}, expanded"
            yield "attention", title, lambda k, d=dtype, w=window: attention(k, d, 64, w, expanded=True)


def faults(kernel: Any, case: str) -> list[str]:
    """What is wrong with a compiled kernel, in words."""
    from modernbert_fast.kernels.offline import SHARED_LIMIT

    found = []
    if kernel.spilled > KNOWN_SPILLS.get((kernel.name, case, kernel.chip), 0):
        found.append(f"spills {kernel.spilled} bytes")
    if kernel.shared > SHARED_LIMIT[kernel.chip] * 1024:
        found.append(f"takes {kernel.shared} bytes of shared memory")
    multiplies = kernel.name.startswith(MULTIPLY) and kernel.name != GATHERS and "float32" not in case
    if multiplies and PRODUCTS[kernel.chip // 10] not in kernel.products:
        found.append(f"does not multiply by {PRODUCTS[kernel.chip // 10]}")
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chips", nargs="+", type=int, choices=CHIPS, default=CHIPS)
    parser.add_argument("--short", action="store_true", help="ModernBERT-base in bfloat16 only")
    args = parser.parse_args(arguments)
    import importlib

    from modernbert_fast.kernels import offline

    print(f"{'':<58}" + "".join(f"sm_{chip:<13}" for chip in args.chips))
    wrong, count = [], 0
    for op, case, call in cases(args.short):
        module = importlib.import_module(f"modernbert_fast.kernels.{op}")
        lines: dict[tuple[str, int], dict[int, Any]] = {}  # chips need not launch the same kernels
        for chip in args.chips:
            if chip < 80 and op in MULTIPLY:
                continue
            seen: Counter[str] = Counter()
            for kernel in offline.compiled(lambda call=call, module=module: call(module), chip):
                lines.setdefault((kernel.name, seen[kernel.name]), {})[chip] = kernel
                seen[kernel.name] += 1
                count += 1
                wrong += [f"{kernel.name}, {case}, sm_{chip}: {why}" for why in faults(kernel, case)]
        for (name, _), cells in lines.items():
            print(f"{name:<26}{case:<32}" + "".join(f"{_cell(cells.get(chip)):<16}" for chip in args.chips), flush=True)
    print(f"{count} kernels compiled, {len(wrong)} faults")
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


def _cell(kernel: Any) -> str:
    if kernel is None:
        return "-"
    products = " ".join(f"{count}" for count in kernel.products.values())
    spilled = f"!{kernel.spilled}" if kernel.spilled else ""
    return f"{kernel.registers}{spilled} {kernel.shared / 1024:.0f}K {products}".strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
