"""What every kernel should take on an H200, from bytes, flops and executed tiles: python benchmarks/run.py gpu/predict.

floor      the bytes and flops of benchmarks/ops/bench_<op>.py, at the chip's rates, whichever takes longer
predicted  what our kernels execute: whole tiles, every pass over memory; products and exponentials follow one another
FA         the same for FlashAttention 3: its tiles, and in the backward its fp32 dq that is added up in memory
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import harness
import torch

from modernbert_fast.config import SLIDING, EncoderConfig
from modernbert_fast.kernels import launch

COPY, PRODUCTS = 4.3e12, 790e12  # bytes and flops a second, as measured on an H200 with torch 2.11
EXPONENTIALS = 132 * 16 * 1.75e9  # a second: processors x units x clock
TOKENS, LENGTHS, DTYPE = 65536, (512, 2048, 8192), torch.bfloat16


class Pass(NamedTuple):
    """A kernel of attention: products of tiles for a pair of blocks, and how often it moves (T, H, D) elements."""

    products: int
    moves: float


OURS = {"fwd": Pass(2, 4), "dq": Pass(3, 6), "dkv": Pass(4, 6)}  # q k v o; q k v o do dq; q k v do dk dv
TURNED = Pass(0, 2)  # keys turned beforehand are read and written once more
FLASH = {"fwd": Pass(2, 4), "bwd": Pass(5, 17)}  # o do; q k v do dk dv; dq in fp32: cleared, added to, read; dq
FLASH_TILES = {
    ("fwd", True): (192, 128),
    ("fwd", False): (192, 192),
    ("bwd", True): (128, 128),
    ("bwd", False): (128, 128),
}
PASSES = {"forward": ("fwd",), "backward": ("dq", "dkv")}


class Prediction(NamedTuple):
    """One kernel in one layer, for one token: bytes and flops at least, seconds."""

    model: str
    length: int
    what: str
    bytes: float
    flops: float
    floor: float
    predicted: float
    flash: float | None


def executed(own: int, step: int, window: int, length: int) -> int:
    """Pairs that blocks of `own` rows execute over one text in steps of `step`: `_reach` of kernels/attention.py."""
    pairs = 0
    for first in range(0, length, own):
        low = max(first - window, 0) // step * step if window >= 0 else 0
        high = min(first + own + window, length) if window >= 0 else length
        pairs += own * step * launch.cdiv(high - low, step)
    return pairs


def floor(case: harness.Case) -> float:
    """Seconds that no kernel beats."""
    return max(case.bytes / COPY, case.flops / PRODUCTS)


def predictions(models: Sequence[str] = ("base", "large"), lengths: Sequence[int] = LENGTHS) -> Iterator[Prediction]:
    """Attention for every length, the rest once."""
    for model in models:
        config = EncoderConfig.preset(model)
        for length in lengths:
            texts = (length,) * (TOKENS // length)
            for op in ("attention", "layer_norm", "geglu") if length == lengths[0] else ("attention",):
                for case in harness.bench_file(op).model_cases(config, texts, DTYPE, torch.device("meta")):
                    if op != "attention":
                        yield _prediction(model, length, case, floor(case), None)
                    elif "rotary" in case.name:
                        yield _prediction(model, length, case, *_attention(config, case, length))


def encoder_flops(config: EncoderConfig, lengths: Sequence[int]) -> int:
    """The products of all layers, attention's among them."""
    cost = harness.bench_file("attention").cost
    heads, C = config.num_attention_heads, config.hidden_size
    linears = 2 * sum(lengths) * (4 * C * C + 3 * C * config.intermediate_size) * config.num_hidden_layers
    windows = [config.window(kind) for kind in config.layer_types]
    return linears + sum(cost(lengths, heads, C // heads, window, DTYPE)[1] for window in windows)


def encoder_seconds(model: str, length: int, found: Sequence[Prediction]) -> float:
    """A token through all layers: predicted kernels, and the linear layers at the full rate."""
    config = EncoderConfig.preset(model)
    own = {p.what: p.predicted for p in found if p.model == model and (p.length == length or "attention" not in p.what)}
    C, seconds = config.hidden_size, 0.0
    for kind in config.layer_types:
        window = config.window(kind)
        seconds += own[f"attention {'global' if window < 0 else f'window {window}'}, rotary inside, forward"]
        seconds += 2 * own["add and layer norm, forward"] + own["geglu, forward"]
        seconds += 2 * (4 * C * C + 3 * C * config.intermediate_size) / PRODUCTS
    return seconds


def _prediction(model: str, length: int, case: harness.Case, predicted: float, flash: float | None) -> Prediction:
    own = (case.bytes, case.flops, floor(case), predicted)
    return Prediction(model, length, case.name, *(x / TOKENS for x in own), flash and flash / TOKENS)


def _attention(config: EncoderConfig, case: harness.Case, length: int) -> tuple[float, float]:
    """Seconds of all passes by ours, and by FlashAttention."""
    H = config.num_attention_heads
    shape = (config.hidden_size // H, H)
    windowed = "window" in case.name
    window = config.window(SLIDING) if windowed else -1
    direction = case.name.rpartition(", ")[2]
    qkv = torch.empty(1, 3, H, shape[0], dtype=DTYPE, device="meta")
    ours = 0.0
    for kind in PASSES[direction]:
        tile = launch.attention(kind, qkv, windowed)
        blocks = tile["BLOCK_M"], tile["BLOCK_N"]
        ours += _seconds(OURS[kind], *(blocks[::-1] if kind == "dkv" else blocks), window, length, *shape)
    kind = "fwd" if direction == "forward" else "bwd"
    if not launch.rotates_inside(kind, qkv, windowed):
        ours += _seconds(TURNED, 1, 1, window, 1, *shape)
    return ours, _seconds(FLASH[kind], *FLASH_TILES[kind, windowed], window, length, *shape)


def _seconds(work: Pass, own: int, step: int, window: int, length: int, D: int, H: int) -> float:
    """One pass over TOKENS tokens: memory beside arithmetic, products and exponentials one after the other."""
    memory = work.moves * H * D * DTYPE.itemsize * TOKENS / COPY
    if not work.products:
        return memory
    pairs = executed(own, step, window, length) * H * TOKENS // length
    return max(memory, 2 * work.products * D * pairs / PRODUCTS + pairs / EXPONENTIALS)


def main(argv: list[str]) -> None:
    argparse.ArgumentParser(prog="run.py gpu/predict", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)  # fmt: skip
    found = list(predictions())
    print(
        "| model | texts of | kernel | KB/token | MFLOP/token | floor ns | predicted ns | FA ns |\n" + "|---" * 8 + "|"
    )
    for p in found:
        length = p.length if "attention" in p.what else "any"
        cells: list[Any] = [p.model, length, p.what, f"{p.bytes / 1e3:.2f}", f"{p.flops / 1e6:.3f}"]
        cells += ["–" if t is None else f"{t * 1e9:.2f}" for t in (p.floor, p.predicted, p.flash)]
        print(f"| {' | '.join(map(str, cells))} |")
    print(
        "\n| model | texts of | MFLOP/token | at the full rate of products, Mtok/s | predicted Mtok/s |\n"
        + "|---" * 5
        + "|"
    )
    for model in ("base", "large"):
        for length in LENGTHS:
            flops = encoder_flops(EncoderConfig.preset(model), (length,)) / length
            rates = PRODUCTS / flops / 1e6, 1e-6 / encoder_seconds(model, length, found)
            print(f"| {model} | {length} | {flops / 1e6:.1f} | {rates[0]:.2f} | {rates[1]:.2f} |")
