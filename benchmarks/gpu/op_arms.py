"""Ops at the size of a model: every row of the table against torch in its best settings, as shares of the ceilings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import torch
from gpu import ceilings
from gpu.journal import Case
from gpu.sizes import Sizes

from modernbert_fast import dispatch, timing
from modernbert_fast.testing.problems import Draw, Problem

OTHERS = ("rope", "padding", "pooling", "maxsim", "cross_entropy")


class OnDevice(Draw):
    """Draws where the problem lives: the host takes seconds for what a GPU draws in a millisecond."""

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device):
        super().__init__(seed, dtype, device)
        self._on_device = torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.randn(shape, generator=self._on_device, dtype=torch.float32, device=self.device).to(
            dtype or self.dtype
        )


def drawn_on_device(problem: Problem) -> Problem:
    return problem.but(draw=lambda draw: problem.draw(OnDevice(0, problem.dtype, problem.device)))


def model_cases(sizes: Sizes, model: str, op: str, lengths: Sequence[int], name: str, path: Path) -> Iterator[Case]:
    """The cases of an op in a layer of `model`, on texts of `lengths`."""
    config = sizes.models[model]
    for case in harness.bench_file(op).model_cases(config, tuple(lengths), sizes.dtype, sizes.device):
        yield Case(f"{model}, {name}: {case.name}", functools.partial(measure, case, sizes, path, sum(lengths)))


def other_cases(sizes: Sizes, path: Path) -> Iterator[Case]:
    """The ops that weigh little, at their usual sizes."""
    for op in OTHERS:
        for case in harness.bench_file(op).cases(sizes.other_tokens, sizes.dtype, sizes.device):
            yield Case(f"{op}: {case.name}", functools.partial(measure, case, sizes, path, 0), 30)


def measure(case: harness.Case, sizes: Sizes, path: Path, tokens: int) -> dict[str, Any]:
    """A rival that cannot run is missing; a row of the table that is wrong or cannot run is a failure."""
    case = dataclasses.replace(case, problem=drawn_on_device(case.problem), checked=case.checked or case.problem)
    missing: dict[str, str] = {}
    failures: dict[str, str] = {}

    def leave_out(name: str, error: Exception) -> bool:
        (failures if name in dispatch.BACKENDS else missing)[name] = harness.reason_of(error)
        return True

    arms = []
    for name in harness.names(case):
        if case.large and arms and name == "reference":
            continue
        try:
            arms.append(harness.arm(case, name))
        except dispatch.NoBackend:
            continue
        except Exception as error:  # rivals are foreign code: any failure is a reason
            leave_out(name, error)
    clock = timing.device_seconds
    taken = timing.interleave(
        arms, sizes.rounds, sizes.warmup, clock=clock, leave_out=lambda arm, e: leave_out(arm.name, e)
    )
    return {"rows": _rows(case, taken, ceilings.of(path), tokens), "missing": missing, "failures": failures}


def _rows(case: harness.Case, taken: Sequence[timing.Measurement], ceiling: tuple, tokens: int) -> list[dict[str, Any]]:
    best = min((m.median for m in taken if m.name not in dispatch.BACKENDS), default=None)
    return [
        {
            "arm": m.name,
            "us": m.median * 1e6,
            "p20": m.p20 * 1e6,
            "p80": m.p80 * 1e6,
            "ns/token": m.median * 1e9 / tokens if tokens else None,
            "TB/s": case.bytes / m.median / 1e12,
            "TFLOP/s": case.flops / m.median / 1e12,
            "of copy": ceiling[0] and case.bytes / ceiling[0] / m.median,
            "of products": ceiling[1] and case.flops / ceiling[1] / m.median,
            "x best rival": best and best / m.median,
        }
        for m in taken
    ]
