"""What the CUDA attention kernels should take: python benchmarks/predict_attention.py.

For each chip the pairs of query and key that warps execute (tiles, steps and reach of csrc/cuda/attention), and the
time of their products, of their exponentials, of what they read from shared memory, and of the bytes of a layer. Prints
ns a token and layer; predicted is the longest of memory, shared memory, and products and exponentials one after the
other.
"""

from typing import NamedTuple

H, D, WINDOW, LENGTHS = 12, 64, 64, (512, 8192)  # ModernBERT-base


class Chip(NamedTuple):
    """Rates a second, of the vendor's data unless docs/decisions/0016 says otherwise.

    Attributes:
        products: flops of fp16 products summed in fp32.
        exponentials: 16 a multiprocessor and clock.
        shared: bytes.
        memory: bytes.
    """

    name: str
    products: float
    exponentials: float
    shared: float
    memory: float


def chip(name: str, tflops: float, processors: int, ghz: float, shared: int, gb: float) -> Chip:
    clocks = processors * ghz * 1e9
    return Chip(name, tflops * 1e12, 16 * clocks, shared * clocks, gb * 1e9)


CHIPS = (
    chip("RTX 2060", 26, 30, 1.68, 64, 336),
    chip("T4", 35, 40, 0.86, 64, 320),  # the 70 W that it is held to: 35 of 65 TFLOP/s
    chip("A100", 312, 108, 1.41, 128, 1555),
    chip("RTX 4090", 165, 128, 2.52, 128, 1008),
)


class Pass(NamedTuple):
    """A kernel, as both families of chips shape it for heads of 64.

    Attributes:
        own: rows of a block.
        bands: 16 own rows each, of a warp; they share what is read from shared memory.
        step: other rows that a warp meets at once.
        products: of a pair of tiles.
        moves: (T, H, D) elements from and to memory.
    """

    name: str
    own: int
    bands: int
    step: int
    products: int
    moves: int


def passes(windowed: bool) -> list[Pass]:
    forward = Pass("forward", 64, 1, 32, 2, 4) if windowed else Pass("forward", 128, 2, 32, 2, 6)
    turned = 0 if windowed else 4  # q and k are read and written once more, beforehand
    return [forward, Pass("dq", 64, 1, 32, 3, 6 + turned), Pass("dk, dv", 64, 1, 32, 4, 6)]


def executed(one: Pass, length: int, window: int) -> int:
    """Pairs of query and key that warps multiply, in one text and head."""
    pairs, rows = 0, 16 * one.bands
    for first in range(0, length, rows):
        start = first // one.own * one.own
        low = max(start - window, 0) // one.step * one.step if window >= 0 else 0
        for step in range(low, length, one.step):
            near = step - (first + rows - 1) <= window and first - (step + one.step - 1) <= window
            pairs += rows * one.step * (window < 0 or near)
    return pairs


def times(on: Chip, one: Pass, length: int, window: int) -> dict[str, float]:
    """ns a token of each limit."""
    pairs = H * executed(one, length, window) / length  # a token
    seconds = {
        "products": 2 * one.products * pairs * D / on.products,
        "exponentials": pairs / on.exponentials,
        "shared memory": 2 * one.products * pairs * D / (16 * one.bands) / on.shared,
        "memory": 2 * one.moves * H * D / on.memory,
    }
    return {limit: 1e9 * value for limit, value in seconds.items()}


def main() -> None:
    print("| chip | layer | kernel | keys | products | exponentials | shared memory | memory | predicted |")
    print("|---|---|---|---|---|---|---|---|---|")
    for on in CHIPS:
        for length in LENGTHS:
            for window in (-1, WINDOW):
                for one in passes(window >= 0):
                    limits = times(on, one, length, window)
                    together = limits["products"] + limits["exponentials"]
                    cells = [
                        on.name,
                        f"{'window' if window >= 0 else 'global'}, {length}",
                        one.name,
                        f"{executed(one, length, window) / length:.0f}",
                        *(f"{limit:.1f}" for limit in limits.values()),
                        f"{max(together, limits['shared memory'], limits['memory']):.1f}",
                    ]
                    print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
