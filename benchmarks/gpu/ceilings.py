"""What the chip does at its best: copies of several sizes, and the products of every model and of a large square."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu import journal
from gpu.journal import Case
from gpu.sizes import Sizes

from modernbert_fast import timing

NAME = "ceilings"
COPIES = (2**26, 2**28, 2**30, 2**32)  # bytes of the source
SIDE = 8192


def cases(sizes: Sizes) -> Iterator[Case]:
    yield Case(NAME, functools.partial(measure, sizes), 60)


def measure(sizes: Sizes) -> dict[str, Any]:
    """Random factors: zeros and ones multiply faster than anything real."""
    works: dict[str, tuple[Any, float, float]] = {}
    for size in (2**20,) if sizes.dry else COPIES:
        works[f"copy of {size >> 20} MiB"] = (_copy(size, sizes.device), 2 * size, 0)
    for name, config in sizes.models.items():
        C, I = config.hidden_size, config.intermediate_size
        for what, K, N in (("Wqkv", C, 3 * C), ("Wo", C, C), ("Wi", C, 2 * I), ("mlp.Wo", I, C)):
            run = _product(sizes.tokens, K, N, sizes.dtype, sizes.device)
            works[f"{name} {what} ({sizes.tokens}, {K}) x ({N}, {K})"] = (run, 0, 2 * sizes.tokens * K * N)
    side = 256 if sizes.dry else SIDE
    for dtype in (sizes.dtype, torch.float16):
        short = str(dtype).removeprefix("torch.")
        works[f"{short} square of {side}"] = (_product(side, side, side, dtype, sizes.device), 0, 2 * side**3)
    arms = [timing.Arm(name, run) for name, (run, _, _) in works.items()]
    taken = timing.interleave(arms, sizes.rounds, sizes.warmup, clock=timing.device_seconds)
    rows = []
    for m in taken:
        _, moved, flops = works[m.name]
        rows.append({"arm": m.name, "ms": m.median * 1e3, "p20": m.p20 * 1e3, "p80": m.p80 * 1e3,
                     "TB/s": moved / m.median / 1e12 or None, "TFLOP/s": flops / m.median / 1e12 or None})  # fmt: skip
    own = [row for row in rows if not row["arm"].startswith("float16")]
    copy, products = (max(row[unit] or 0 for row in own) * 1e12 for unit in ("TB/s", "TFLOP/s"))
    return {"rows": rows, "bytes_per_second": copy, "flops_per_second": products}


def of(path: Path) -> tuple[float | None, float | None]:
    """Bytes and flops a second that this run measured; None where it has not."""
    result = journal.read(path).get(NAME, {}).get("result") or {}
    return result.get("bytes_per_second"), result.get("flops_per_second")


def _copy(size: int, device: torch.device) -> Any:
    source = torch.empty(size // 4, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    return functools.partial(target.copy_, source)


def _product(T: int, K: int, N: int, dtype: torch.dtype, device: torch.device) -> Any:
    x, weight = (torch.empty(rows, K, dtype=dtype, device=device).normal_() for rows in (T, N))
    return functools.partial(F.linear, x, weight)
