"""What a search should take on an H200: python benchmarks/run.py gpu/predict_search.

Programs of a GPU that score a document each and share one memory: a program starts, asks for the tiles of its document
as far ahead as its stages reach, works on each when it has come, and adds up. How many run at one time follows from
their registers and shared memory (`run.py compile_report`). The four times below are fitted to three figures of 0028;
everything else is counted.
"""

import heapq
import itertools
from typing import Any, NamedTuple

from gpu.late_interaction import lengths_of

PROCESSORS, MEMORY, LATENCY = 132, 4.27e6, 0.9  # of an H200: multiprocessors, bytes a us as measured, us
HEAD, TAIL, AROUND = 1.6, 1.0, 8.0  # us of a program before its first tile and after its last; of a launch
TILE, DIM, RAGGED = 64, 128, (4874, 608_414)


class Kernel(NamedTuple):
    """A build of the forward kernel, for documents of DIM columns.

    Attributes:
        programs: at one time on a multiprocessor.
        stages: tiles that it has room for.
        element: bytes.
        work: us of a tile, which int8 has to be converted for.
    """

    name: str
    programs: int
    stages: int
    element: int
    work: float


BEFORE = Kernel("float16, 157 registers", 3, 3, 2, 0.25), Kernel("int8, 220 registers, converted", 2, 3, 1, 0.55)
NOW = Kernel("float16, 64 registers", 4, 3, 2, 0.25), Kernel("int8, 108 registers, last bits", 4, 3, 1, 0.4)


def predicted(kernel: Kernel, lengths: list[int]) -> float:
    """us for documents of these lengths."""
    free, end, order, waiting = 0.0, 0.0, itertools.count(), iter(lengths)
    events: list[tuple[float, int, Any]] = [(HEAD, next(order), None) for _ in range(kernel.programs * PROCESSORS)]
    while events:
        now, _, document = heapq.heappop(events)
        if document is None:  # a program takes the next one
            if (length := next(waiting, None)) is None:
                continue
            sizes = [min(TILE, length - n) * DIM * kernel.element for n in range(0, length, TILE)]
            document, ahead = (iter(sizes), []), kernel.stages - 1
        else:
            now, ahead = now + kernel.work, 1
        sizes_left, arrivals = document
        for size in itertools.islice(sizes_left, ahead):
            free = max(now, free) + size / MEMORY
            arrivals.append(free + LATENCY)
        if arrivals:
            heapq.heappush(events, (max(now, arrivals.pop(0)), next(order), document))
        else:
            end = now + TAIL
            heapq.heappush(events, (end + HEAD, next(order), None))
    return end + AROUND


def main(argv: list[str]) -> None:
    shapes = {"4,874 ragged": lengths_of(*RAGGED), "1,000 x 300": [300] * 1000, "1,000 x 1,024": [1024] * 1000}
    for kernel in (*BEFORE, *NOW):
        figures = "  ".join(f"{name}: {predicted(kernel, lengths):5.1f} us" for name, lengths in shapes.items())
        print(f"{kernel.name:<32} {figures}")
