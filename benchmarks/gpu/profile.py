"""Where the time of a forward pass goes, kernel by kernel and on the host: python benchmarks/run.py gpu/profile.

One text of 64 tokens, eagerly and with CUDA graphs, stock beside it, and a batch of 512-token texts. Per forward: wall
time without the profiler; how long the GPU worked and how long it waited between kernels, how many there were, and the
longest with the op of the host that took most, all under it. A share of waiting far above a graph's is host overhead.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from gpu import pairs, sizes
from torch.profiler import ProfilerActivity, profile

from modernbert_fast.commands.comparison import forward

RUNS = 20  # under the profiler, of one forward pass each
KERNELS, HOST_OPS = 14, 8  # lines of a table


def main(argv: list[str]) -> None:
    chosen = sizes.choose("--dry" in argv or not torch.cuda.is_available())
    name = next(iter(chosen.models))
    stock = pairs.stock(chosen, name)
    eager, graphed = pairs.fast(stock), pairs.fast(stock, cuda_graphs=True)
    short = pairs.batch(stock.config, (chosen.latency[0],), chosen.device)
    many = pairs.batch(stock.config, chosen.texts(chosen.lengths[0]), chosen.device)
    for title, model, inputs in (
        ("one text, eager", eager, short),
        ("one text, CUDA graphs", graphed, short),
        ("one text, transformers sdpa", stock, short),
        ("batch, eager", eager, many),
    ):
        shape = "x".join(map(str, inputs["input_ids"].shape))
        report(f"{name}, {title}, {shape}", functools.partial(forward, model, inputs))


def report(title: str, run: Callable[[], Any]) -> None:
    """Prints one table. `run` is a forward pass."""
    settle = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(5):
        run()
    settle()
    walls = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        settle()
        walls.append(time.perf_counter() - start)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as found:
        for _ in range(RUNS):
            run()
            settle()
    kernels = sorted(
        (e.time_range.start, e.time_range.end, e.name)
        for e in found.events()
        if e.device_type == torch.autograd.DeviceType.CUDA
    )
    print(f"\n## {title}: {1e3 * statistics.median(walls):.3f} ms")
    if kernels:
        _print_kernels(kernels)
    print("| host, self time | us a forward | calls |\n|---|---|---|")
    hosts = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)[:HOST_OPS]
    for e in hosts:
        print(f"| {e.key[:70]} | {e.self_cpu_time_total / RUNS:.1f} | {e.count / RUNS:g} |")
    sys.stdout.flush()


def _print_kernels(kernels: list[tuple[float, float, str]]) -> None:
    """kernels: start and end in us, and a name, in order."""
    busy, waited, end = 0.0, 0.0, kernels[0][0]
    by_name: dict[str, list[float]] = defaultdict(list)
    for start, stop, name in kernels:
        by_name[name].append(stop - start)
        busy += max(stop - max(start, end), 0)
        waited += max(start - end, 0)
        end = max(end, stop)
    print(
        f"GPU busy {busy / RUNS:.1f} us, waiting {waited / RUNS:.1f} us (host between forwards included), "
        f"{len(kernels) / RUNS:g} kernels and copies a forward\n\n"
        "| kernel | us a forward | times | us each |\n|---|---|---|---|"
    )
    for name, times in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:KERNELS]:
        print(f"| {name[:90]} | {sum(times) / RUNS:.1f} | {len(times) / RUNS:g} | {statistics.median(times):.2f} |")
    print()
