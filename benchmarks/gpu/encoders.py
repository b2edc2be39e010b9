"""The whole encoder, base and large: ours, stock transformers, torch's best parts and the limit; batch 1 too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import torch
from gpu import ceilings, pairs, parts, predict
from gpu.journal import Case
from gpu.rows import model_rows
from gpu.sizes import Sizes

from modernbert_fast import timing
from modernbert_fast.commands.comparison import FAST, LINEARS, STOCK, forward, linears
from modernbert_fast.commands.models import twin

COMPILED, FLASH, GRAPHS = f"torch.compile {STOCK}", "transformers flash_attention_2", f"{FAST}, CUDA graphs"
SWIFT = (FLASH, f"parts: {parts.ATTENTION[0]}")
SLOW_TO_BUILD = (COMPILED, f"parts: {parts.ATTENTION[1]}")
Run = Callable[[], torch.Tensor]


def cases(sizes: Sizes, model: str, rivals: tuple[str, ...], path: Path) -> Iterator[Case]:
    """A batch of the shortest kind of text, a mixed one, and a batch of the longest."""
    short, long = sizes.lengths
    batches = {f"{short}s": sizes.texts(short), "mixed": sizes.mixed(), f"{long}s": sizes.texts(long)}
    what = "" if rivals == SWIFT else ", what takes long to build"
    for name, lengths in batches.items():
        run = functools.partial(measure, sizes, model, lengths, rivals, path)
        yield Case(f"encoder {model}, {name}{what}", run, 90 if rivals == SWIFT else 150)


def latency_cases(sizes: Sizes, model: str, path: Path) -> Iterator[Case]:
    for length in sizes.latency:
        yield Case(f"latency {model}, 1x{length}", functools.partial(latency, sizes, model, length), 120)


def measure(sizes: Sizes, model: str, lengths: tuple[int, ...], rivals: tuple[str, ...], path: Path) -> dict[str, Any]:
    stock = pairs.stock(sizes, model)
    fast = pairs.fast(stock)
    inputs = pairs.batch(stock.config, lengths, sizes.device)
    builders = {
        STOCK: lambda: functools.partial(forward, stock, inputs),
        FAST: lambda: functools.partial(forward, fast, inputs),
    }
    builders |= {name: functools.partial(_rival, name, sizes, stock, model, lengths, inputs) for name in rivals}
    limit = timing.Arm(LINEARS, functools.partial(linears, fast, sum(lengths)))
    rounds = max(sizes.rounds // 2, 1)
    taken, missing, failures = _timed(stock, inputs, builders, [limit], sizes, rounds, timing.device_seconds)
    medians = {m.name: m.median for m in taken}
    flops = predict.encoder_flops(sizes.models[model], lengths)
    shares = {"of linears": medians[LINEARS]}
    if peak := ceilings.of(path)[1]:
        shares["of products"] = flops / peak
    rows = model_rows(taken, sum(lengths), STOCK, **shares)
    return {"rows": rows, "missing": missing, "failures": failures, "flops": flops}


def latency(sizes: Sizes, model: str, length: int) -> dict[str, Any]:
    """Wall time, host included, of one text."""
    stock = pairs.stock(sizes, model)
    inputs = pairs.batch(stock.config, (length,), sizes.device)
    fast = pairs.fast(stock)
    builders: dict[str, Callable[[], Run]] = {
        STOCK: lambda: functools.partial(forward, stock, inputs),
        FAST: lambda: functools.partial(forward, fast, inputs),
        GRAPHS: lambda: functools.partial(forward, pairs.fast(stock, cuda_graphs=True), inputs),
        f"{COMPILED}, CUDA graphs": functools.partial(_compiled, stock, inputs, "reduce-overhead"),
    }
    taken, missing, failures = _timed(stock, inputs, builders, [], sizes, 4 * sizes.rounds, timing.seconds)
    return {"rows": model_rows(taken, length, STOCK), "missing": missing, "failures": failures}


def _timed(
    stock: Any,
    inputs: dict,
    builders: dict[str, Callable[[], Run]],
    limits: list[timing.Arm],
    sizes: Sizes,
    rounds: int,
    clock: Any,
) -> tuple[list[timing.Measurement], dict[str, str], dict[str, str]]:
    """Measurements, rivals that are missing and arms of ours that failed; parity comes before the clock."""
    judge = pairs.judge(stock, inputs)
    judge.yardstick(STOCK, forward(stock, inputs))
    missing: dict[str, str] = {}
    failures: dict[str, str] = {}

    def leave_out(name: str, error: Exception) -> bool:
        (failures if name.startswith(FAST) else missing)[name] = harness.reason_of(error)
        return True

    arms = []
    for name, build in builders.items():
        try:
            arms.append(timing.Arm(name, build(), None if name == STOCK else functools.partial(judge.check, name)))
        except Exception as error:  # foreign code: any failure is a reason
            leave_out(name, error)
    arms += limits
    taken = timing.interleave(
        arms, rounds, sizes.warmup, clock=clock, leave_out=lambda arm, error: leave_out(arm.name, error)
    )
    return taken, missing, failures


def _rival(name: str, sizes: Sizes, stock: Any, model: str, lengths: tuple[int, ...], inputs: dict) -> Run:
    if name == COMPILED:
        return _compiled(stock, inputs, "default")
    if name == FLASH:
        flash = twin(stock)
        flash.set_attn_implementation("flash_attention_2")
        return functools.partial(forward, flash, inputs)
    attention = name.removeprefix("parts: ")
    return parts.encoder(stock, sizes.models[model], lengths, inputs["input_ids"], attention)


def _compiled(stock: Any, inputs: dict, mode: str) -> Run:
    options = {"mode": mode} if harness.COMPILER == "inductor" else {"backend": harness.COMPILER}
    return functools.partial(forward, torch.compile(twin(stock), dynamic=False, **options), inputs)
