"""Everything that must hold on a GPU, in one run: python benchmarks/run.py gpu/check (make test-gpu).

The op tests on every row of the table that runs there; tensors of more than 2^31 elements; the whole model, its
gradients and its CUDA graphs; compute-sanitizer. What fails is written down and the rest goes on.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from typing import Any

import harness
from gpu import chips, huge, journal, model_checks, sanitize, session, sizes

from modernbert_fast import dispatch

PROGRAM = "gpu/check"
BUDGET = 500.0
OURS = ("cuda", "triton")
PARTS = {
    "model": model_checks.cases,
    "beyond 2^31": huge.cases,
    "older chips": chips.cases,
    **{f"sanitizer {backend}": functools.partial(sanitize.cases, backend) for backend in OURS},
}


def main(argv: list[str]) -> None:
    parser = session.arguments(PROGRAM, __doc__, BUDGET)
    parser.add_argument("--workers", type=int, default=0, help="processes of the op tests (default: by CPUs)")
    args = parser.parse_args(argv)
    session.settle(args)
    if args.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are imported
    chosen = sizes.choose(args.dry)
    if args.part:
        cases = [case for part in args.part.split(",") for case in PARTS[part](chosen)]
        journal.work(session.selected(cases, args.only), args.journal, args.until)
        return
    processes = [",".join(PARTS)] if args.dry else [*PARTS]  # a rehearsal has few CPUs
    jobs = [session.Job(part, session.child(PROGRAM, part, args)) for part in processes]
    if not args.only:
        workers = 1 if args.dry else args.workers or max(min((os.cpu_count() or 1) - len(PARTS), 12), 1)
        jobs = [_tests(i, workers, args) for i in range(workers)] + jobs
    sys.exit(session.run("test-gpu", jobs, args, None if args.dry or args.only else idle_rows))


def idle_rows(cases: list[dict[str, Any]]) -> dict[str, str]:
    """Rows of ours that passed no test: a skip is no pass."""
    passed = {(case["op"], case["backend"]) for case in cases if "op" in case and case["state"] == "passed"}
    why = {(case["op"], case["backend"]): case.get("reason", "") for case in cases if "op" in case}
    return {
        f"row {row.backend} of {op}": f"passed no test: {why.get((op, row.backend), 'none was run')}"
        for op, rows in dispatch.TABLE.items()
        for row in rows
        if row.backend in OURS and (op, row.backend) not in passed
    }


def _tests(share: int, shares: int, args: argparse.Namespace) -> session.Job:
    tests = harness.FOLDER.parent / "tests" / "ops"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "gpu.plugin", str(tests)]
    words += ["--share", f"{share}/{shares}", "--until", str(args.until), *(["--few"] if args.dry else [])]
    path = os.pathsep.join([str(harness.FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = [("PYTHONPATH", path), ("OMP_NUM_THREADS", "1")]
    return session.Job(f"op tests {share}", tuple(words), tuple(environment))
