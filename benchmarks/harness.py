"""Op benchmarks: every usable row of the table beside plain torch, checked, interleaved, as a share of the machine.

A case is a problem with its bytes and flops (benchmarks/ops/bench_<op>.py); what is timed and how is decided here.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from modernbert_fast import dispatch, library, ops, timing
from modernbert_fast.testing import Problem, assert_as_good_as, checks
from modernbert_fast.testing.problems import Tensors

FOLDER = Path(__file__).resolve().parent
COPY, LINEAR, OWN_LINEAR = "limit: copy", "limit: F.linear", "limit: ops.linear"
COPY_BYTES, LINEAR_SIDE = 2**27, 1024


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        name: what is done, with its shapes.
        problem: inputs, the public op and plain torch.
        bytes, flops: what the forward must at least move and multiply; a backward counts `backward` times as much.
        backward: 0 for the forward alone, else the share of both passes in units of the forward.
        large: too much work for the reference row, where another serves.
    """

    name: str
    problem: Problem
    bytes: int
    flops: int = 0
    backward: float = 0.0
    large: bool = False

    @property
    def cost(self) -> tuple[float, float]:
        """Bytes and flops of the whole case."""
        return self.bytes * (1 + self.backward), self.flops * (1 + self.backward)


def both(name: str, problem: Problem, bytes: int, flops: int = 0, backward: float = 2.0) -> list[Case]:
    """The forward alone, and forward with backward."""
    return [
        Case(name, problem.but(grads=()), bytes, flops),
        Case(f"{name}, forward and backward", problem, bytes, flops, backward),
    ]


def rows_beyond_cache(bytes_per_row: int) -> int:
    """How many rows it takes to move as much as the copy that sets the limit."""
    return COPY_BYTES // bytes_per_row


def cases(op: str, device: torch.device, dtype: torch.dtype, large: bool = False) -> list[Case]:
    """The cases of one op at the size of the device, or its large ones, if it has any."""
    sys.path.insert(0, str(FOLDER / "ops"))
    try:
        module = importlib.import_module(f"bench_{op}")
    finally:
        sys.path.remove(str(FOLDER / "ops"))
    if large:
        return list(module.large_cases(dtype, device)) if hasattr(module, "large_cases") else []
    tokens = 512 if dispatch.host_readable(torch.empty(0, device=device)) else 16384
    return list(module.cases(tokens, dtype, device))


def arms(case: Case, compiled: bool = False) -> Iterator[timing.Arm]:
    """Every row that serves the case, torch, and torch.compile on request; each checks itself before it is timed."""
    found = 0
    for row in dispatch.TABLE[case.problem.op]:
        if case.large and found and row.backend == "reference":
            continue
        try:
            yield arm(case, row.backend)
            found += 1
        except dispatch.NoBackend:
            continue
    yield arm(case, "torch")
    if compiled:
        yield arm(case, "torch.compile")


def arm(case: Case, name: str) -> timing.Arm:
    """One row of the table, "torch" or "torch.compile".

    Raises:
        NoBackend: the row has an objection.
    """
    problem = case.problem
    inputs, _, _ = _yardstick(problem)
    leaves = {n: x.detach().requires_grad_() if n in problem.grads else x for n, x in inputs.items()}
    function = {"torch": problem.plain, "torch.compile": torch.compile(problem.plain)}.get(name, problem.run)
    backend = None if name.startswith("torch") else name

    def run() -> Any:
        with dispatch.use_backend(backend, problem.op), torch.set_grad_enabled(bool(problem.grads)):
            results = function(**leaves)
            if not problem.grads:
                return results
            results = results if isinstance(results, tuple) else (results,)
            return torch.autograd.grad(results, [leaves[n] for n in problem.grads], given)

    with dispatch.use_backend(backend, problem.op):
        first = function(**inputs)
    given = [torch.ones_like(result) for result in (first if isinstance(first, tuple) else (first,))]
    return timing.Arm(name, run, _check(problem, function))


def limits(device: torch.device, dtype: torch.dtype) -> list[timing.Arm]:
    """What the machine can do: a copy larger than its caches, and a square product by torch and by our own row."""
    source = torch.ones(COPY_BYTES // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    square = torch.ones(LINEAR_SIDE, LINEAR_SIDE, dtype=dtype, device=device)
    return [
        timing.Arm(COPY, lambda: target.copy_(source)),
        timing.Arm(LINEAR, lambda: F.linear(square, square)),
        timing.Arm(OWN_LINEAR, lambda: ops.linear(square, square)),
    ]


def measure(case: Case, rounds: int = 5, compiled: bool = False) -> list[dict[str, Any]]:
    """One record an arm: median, spread, rates, the shares of the measured limits that it reaches, times torch's.

    The limit of products is the better of F.linear and ops.linear.
    """
    problem = case.problem
    measured = timing.interleave([*limits(problem.device, problem.dtype), *arms(case, compiled)], rounds, warmup=2)
    copy, linear, own_linear, *rest = measured
    bytes, flops = case.cost
    at_copy = bytes * copy.median / COPY_BYTES
    at_linear = flops * min(linear.median, own_linear.median) / (2 * LINEAR_SIDE**3)
    torch_median = next(taken.median for taken in rest if taken.name == "torch")
    return [
        {
            "op": problem.op,
            "case": case.name,
            "dtype": str(problem.dtype).removeprefix("torch."),
            "device": problem.device.type,
            "arm": taken.name,
            "median_us": taken.median * 1e6,
            "p20_us": taken.p20 * 1e6,
            "p80_us": taken.p80 * 1e6,
            "gb_s": bytes / taken.median / 1e9,
            "gflop_s": flops / taken.median / 1e9,
            "times_torch": torch_median / taken.median,
            "share_of_copy": at_copy / taken.median,
            "share_of_linear": at_linear / taken.median,
            "share_of_limit": max(at_copy, at_linear) / taken.median,
            "limit_copy_gb_s": COPY_BYTES / copy.median / 1e9,
            "limit_linear_gflop_s": 2 * LINEAR_SIDE**3 / linear.median / 1e9,
            "limit_own_linear_gflop_s": 2 * LINEAR_SIDE**3 / own_linear.median / 1e9,
        }
        for taken in rest
    ]


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed, as a model's allocations find it; else results beyond 32 MiB are page faults."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD in malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def machine() -> str:
    """A name for the folder of this machine's results."""
    accelerators = timing.accelerators()
    cpu = f"{timing.cpu_model()} {library.isa()} {torch.get_num_threads()} threads"
    name = accelerators[0]["name"] if accelerators else cpu
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@functools.lru_cache(maxsize=1)  # the arms of a case come one after the other
def _yardstick(problem: Problem) -> tuple[Tensors, Tensors, Tensors]:
    """Inputs, what plain torch makes of them, and the truth."""
    inputs = problem.inputs()
    return inputs, checks.evaluate(problem.plain, inputs, problem.grads), checks.truth_of(problem, inputs)


def _check(problem: Problem, function: Callable[..., Any]) -> Callable[[Any], None]:
    """Holds what an arm computes to the error rule; timing never sees a wrong arm."""

    def check(_: Any) -> None:
        inputs, same_dtype, truth = _yardstick(problem)
        for name, got in checks.evaluate(function, inputs, problem.grads).items():
            assert_as_good_as(got, same_dtype[name], truth[name], name)

    return check
