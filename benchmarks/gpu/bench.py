"""How fast it is on a GPU, the most important first: python benchmarks/run.py gpu/bench (make bench-gpu).

Ceilings; the encoder against stock and torch's parts; latency; attention, norms and geglu; a training step; MaxSim;
large; then what takes long to compile, and the small ops. Arms are checked, interleaved and timed by events; medians.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import harness
import torch
from gpu import ceilings, encoders, late_interaction, op_arms, session, sizes, training
from gpu.journal import Case, work

PROGRAM = "gpu/bench"
BUDGET = 520.0
HEAVY = ("attention", "layer_norm", "geglu")


def main(argv: list[str]) -> None:
    args = session.arguments(PROGRAM, __doc__, BUDGET).parse_args(argv)
    session.settle(args)
    if args.part:
        chosen = sizes.choose(args.dry)
        harness.COMPILER = chosen.compiler
        torch._dynamo.config.recompile_limit = 256  # one function, many shapes
        torch._functorch.config.donated_buffer = False  # a backward is timed many times on one forward
        work(session.selected(cases(chosen, args.journal), args.only), args.journal, args.until)
        return
    sys.exit(session.run("bench-gpu", [session.Job("bench", session.child(PROGRAM, "bench", args))], args))


def cases(chosen: sizes.Sizes, path: Path) -> Iterator[Case]:
    """In the order in which they are worth the time."""
    first, *rest = chosen.models
    yield from ceilings.cases(chosen)
    yield from encoders.cases(chosen, first, encoders.SWIFT, path)
    yield from encoders.latency_cases(chosen, first, path)
    yield from _ops(chosen, first, path)
    yield from training.cases(chosen)
    yield from late_interaction.cases(chosen)
    for model in rest:
        yield from encoders.cases(chosen, model, encoders.SWIFT, path)
    yield from encoders.cases(chosen, first, encoders.SLOW_TO_BUILD, path)
    for model in rest:
        yield from _ops(chosen, model, path)
    yield from op_arms.other_cases(chosen, path)
    for model in rest:
        yield from encoders.cases(chosen, model, encoders.SLOW_TO_BUILD, path)


def _ops(chosen: sizes.Sizes, model: str, path: Path) -> Iterator[Case]:
    """Attention by the length of texts, the rest once."""
    batches = {f"{length}s": chosen.texts(length) for length in chosen.op_lengths} | {"mixed": chosen.mixed()}
    for op in HEAVY:
        for name, lengths in batches.items() if op == "attention" else [*batches.items()][:1]:
            yield from op_arms.model_cases(chosen, model, op, lengths, name, path)
