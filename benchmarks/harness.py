"""Op benchmarks: every usable row of the table beside plain torch, checked, interleaved, as a share of the machine.

A case is a problem with its bytes and flops (benchmarks/ops/bench_<op>.py); what is timed and how is decided here.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from modernbert_fast import dispatch, library, ops, timing
from modernbert_fast.testing import Problem, assert_as_good_as, checks
from modernbert_fast.testing.problems import Tensors

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
TORCH, COPY, LINEAR, OWN_LINEAR = "torch", "limit: copy", "limit: F.linear", "limit: ops.linear"
COPY_BYTES, LINEAR_SIDE = 2**27, 1024
COMPILER = "inductor"  # of torch.compile; a rehearsal takes one that compiles nothing


Rivals = Callable[[Problem], Mapping[str, Callable[..., Any]]]


def with_compiled(problem: Problem) -> dict[str, Callable[..., Any]]:
    """Plain torch, and compiled by COMPILER."""
    return {TORCH: problem.plain, "torch.compile": torch.compile(problem.plain, backend=COMPILER, dynamic=False)}


def _torch(problem: Problem) -> dict[str, Callable[..., Any]]:
    return {TORCH: problem.plain}


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        name: what is done, with its shapes.
        problem: inputs, the public op and plain torch.
        bytes, flops: what the case must at least move and multiply.
        large: too much work for the reference row, where another serves.
        backward_only: the forward stays outside the clock.
        rivals: from a problem to functions of its inputs by name; plain torch unless given.
        checked: a smaller problem of the same kind that arms are checked on; None is the problem itself.
    """

    name: str
    problem: Problem
    bytes: float
    flops: float = 0
    large: bool = False
    backward_only: bool = False
    rivals: Rivals = _torch
    checked: Problem | None = None


Backward = float | tuple[float, float]  # of the forward's bytes and flops, where they differ


def both(name: str, problem: Problem, bytes: int, flops: int = 0, backward: Backward = 2.0) -> list[Case]:
    """The forward alone, and forward with backward."""
    more_bytes, more_flops = _factors(backward)
    return [
        Case(name, problem.but(grads=()), bytes, flops),
        Case(f"{name}, forward and backward", problem, bytes * (1 + more_bytes), flops * (1 + more_flops)),
    ]


def apart(
    name: str,
    problem: Problem,
    checked: Problem,
    bytes: int,
    flops: int = 0,
    backward: Backward = 2.0,
    rivals: Rivals = _torch,
) -> list[Case]:
    """The forward alone and the backward alone, too large for the reference: arms are checked on `checked`."""
    more_bytes, more_flops = _factors(backward)
    forward = Case(f"{name}, forward", problem.but(grads=()), bytes, flops, True, False, rivals, checked.but(grads=()))
    return [
        forward,
        Case(f"{name}, backward", problem, bytes * more_bytes, flops * more_flops, True, True, rivals, checked),
    ]


def _factors(backward: Backward) -> tuple[float, float]:
    return backward if isinstance(backward, tuple) else (backward, backward)


def rows_beyond_cache(bytes_per_row: int) -> int:
    """How many rows it takes to move as much as the copy that sets the limit."""
    return COPY_BYTES // bytes_per_row


def bench_file(op: str) -> Any:
    """benchmarks/ops/bench_<op>.py."""
    sys.path.insert(0, str(FOLDER / "ops"))
    try:
        return importlib.import_module(f"bench_{op}")
    finally:
        sys.path.remove(str(FOLDER / "ops"))


def cases(op: str, device: torch.device, dtype: torch.dtype, large: bool = False) -> list[Case]:
    """The cases of one op at the size of the device, or its large ones, if it has any."""
    module = bench_file(op)
    if large:
        return list(module.large_cases(dtype, device)) if hasattr(module, "large_cases") else []
    tokens = 512 if dispatch.host_readable(torch.empty(0, device=device)) else 16384
    return list(module.cases(tokens, dtype, device))


def names(case: Case) -> list[str]:
    """Every arm that there may be: rows of the table, then rivals."""
    return [*(row.backend for row in dispatch.TABLE[case.problem.op]), *case.rivals(case.problem)]


def arms(case: Case, compiled: bool = False) -> Iterator[timing.Arm]:
    """Every row that serves, the rivals, torch.compile on request; each checks itself before it is timed."""
    if compiled:
        case = dataclasses.replace(case, rivals=with_compiled)
    found = False
    for name in names(case):
        if case.large and found and name == "reference":
            continue
        try:
            yield arm(case, name)
            found = True
        except dispatch.NoBackend:
            continue


def arm(case: Case, name: str) -> timing.Arm:
    """One row of the table, or a rival by name.

    Raises:
        NoBackend: the row has an objection.
    """
    problem = case.problem
    inputs = _inputs(problem)
    leaves = {n: x.detach().requires_grad_() if n in problem.grads else x for n, x in inputs.items()}
    backend = name if name in dispatch.BACKENDS else None
    function = _function(case, problem, name)

    def forward() -> tuple[Any, ...]:
        results = function(**leaves)
        return results if isinstance(results, tuple) else (results,)

    with dispatch.use_backend(backend, problem.op), torch.set_grad_enabled(bool(problem.grads)):
        first = forward()
    given = [torch.randn_like(result) for result in first] if problem.grads else []
    kept = first if case.backward_only else None
    del first
    wanted = [leaves[n] for n in problem.grads]

    def run() -> Any:
        with dispatch.use_backend(backend, problem.op), torch.set_grad_enabled(bool(problem.grads)):
            results = kept or forward()
            if not problem.grads:
                return results
            return torch.autograd.grad(results, wanted, given, retain_graph=kept is not None)

    checked = case.checked or problem
    return timing.Arm(name, run, _check(checked, _function(case, checked, name), backend))


def _function(case: Case, problem: Problem, name: str) -> Callable[..., Any]:
    """What an arm runs on the inputs of a problem."""
    return problem.run if name in dispatch.BACKENDS else case.rivals(problem)[name]


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
    rates = {
        "limit_copy_gb_s": COPY_BYTES / copy.median / 1e9,
        "limit_linear_gflop_s": 2 * LINEAR_SIDE**3 / linear.median / 1e9,
        "limit_own_linear_gflop_s": 2 * LINEAR_SIDE**3 / own_linear.median / 1e9,
    }
    at_copy = case.bytes / rates["limit_copy_gb_s"] / 1e9
    at_linear = case.flops / max(rates["limit_linear_gflop_s"], rates["limit_own_linear_gflop_s"]) / 1e9
    torch_median = next(taken.median for taken in rest if taken.name == TORCH)
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
            "gb_s": case.bytes / taken.median / 1e9,
            "gflop_s": case.flops / taken.median / 1e9,
            "times_torch": torch_median / taken.median,
            "share_of_copy": at_copy / taken.median,
            "share_of_linear": at_linear / taken.median,
            "share_of_limit": max(at_copy, at_linear) / taken.median,
            **rates,
        }
        for taken in rest
    ]


def reason_of(error: Exception) -> str:
    """The kind of a failure and its first line."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed, as a model's allocations find it; else results beyond 32 MiB are page faults."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD in malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """What every benchmark takes."""
    made = argparse.ArgumentParser(
        prog=f"run.py {program}".strip(), description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--output", type=Path, help="folder of the record (default: benchmarks/results/<machine>)")
    return made


def record_path(output: Path | None, name: str) -> Path:
    """Where a record goes: to a folder of the user's, or to that of this machine."""
    return (output or RESULTS / machine()) / name


def machine() -> str:
    """A name for the folder of this machine's results."""
    accelerators = timing.accelerators()
    cpu = f"{timing.cpu_model()} {library.isa()} {torch.get_num_threads()} threads"
    name = accelerators[0]["name"] if accelerators else cpu
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@functools.lru_cache(maxsize=1)  # the arms of a case come one after the other
def _inputs(problem: Problem) -> Tensors:
    return problem.inputs()


@functools.lru_cache(maxsize=1)
def _yardstick(problem: Problem) -> tuple[Tensors, Tensors, Tensors]:
    """Inputs, what plain torch makes of them, and the truth."""
    inputs = _inputs(problem)
    return inputs, checks.evaluate(problem.plain, inputs, problem.grads), checks.truth_of(problem, inputs)


def _check(problem: Problem, function: Callable[..., Any], backend: str | None) -> Callable[[Any], None]:
    """Holds what an arm computes to the error rule; timing never sees a wrong arm."""

    def check(_: Any) -> None:
        inputs, same_dtype, truth = _yardstick(problem)
        with dispatch.use_backend(backend, problem.op):
            # A rival's kernel may be lost where a gradient is not aligned to 16 bytes, which no model gives it.
            found = checks.evaluate(function, inputs, problem.grads, "plain")
        for name, got in found.items():
            assert_as_good_as(got, same_dtype[name], truth[name], name)

    return check
