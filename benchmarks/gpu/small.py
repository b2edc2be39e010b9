"""Both passes of every small problem on one row of the table and nothing else: what a sanitizer watches.

python benchmarks/run.py gpu/small triton
"""

from __future__ import annotations

import sys

import torch

from modernbert_fast import dispatch
from modernbert_fast.testing import SMALL, checks, problems
from modernbert_fast.testing.problems import Problem


def run(backend: str, dtype: torch.dtype, device: torch.device) -> int:
    """How many problems the row served."""
    served = 0
    for op in dispatch.TABLE:
        wide = _of_real_width(op, dtype, device) if torch.cuda.is_available() else []  # too slow in an interpreter
        for problem in [*SMALL[op](dtype, device), *wide]:
            try:
                with dispatch.use_backend(backend, op):
                    checks.evaluate(problem.run, problem.inputs(), problem.grads)
                served += 1
            except dispatch.NoBackend:
                continue
    return served


def _of_real_width(op: str, dtype: torch.dtype, device: torch.device) -> list[Problem]:
    """Tiles that are full, and tiles that are not."""
    if op != "attention":
        return []
    return [problems.attention((130, 0, 65, 1), 2, 64, dtype, device, window=window) for window in (-1, 64)]


def main(argv: list[str]) -> None:
    (backend,) = argv
    on_gpu = torch.cuda.is_available()
    served = run(backend, torch.bfloat16 if on_gpu else torch.float32, torch.device("cuda" if on_gpu else "cpu"))
    torch.accelerator.synchronize() if on_gpu else None
    print(f"{served} problems by {backend}")
    if on_gpu and not served:
        sys.exit(1)
