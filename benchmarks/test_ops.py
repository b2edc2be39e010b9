"""pytest-benchmark over every op, case and arm; `benchmarks/run.py` interleaves the arms and writes the results."""

import harness
import pytest
import torch

from modernbert_fast import dispatch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32
CELLS = [
    pytest.param(case, arm, id=f"{op}-{case.name}-{arm}", marks=pytest.mark.benchmark(group=f"{op}: {case.name}"))
    for op, rows in dispatch.TABLE.items()
    for case in harness.cases(op, DEVICE, DTYPE)
    for arm in [*(row.backend for row in rows), "torch"]
]


@pytest.mark.parametrize("case, name", CELLS)
def test_op(benchmark, case, name):
    try:
        arm = harness.arm(case, name)
    except dispatch.NoBackend as objection:
        pytest.skip(str(objection))
    arm.check(arm.run())
    benchmark.extra_info.update(bytes=case.bytes, flops=case.flops)
    benchmark.pedantic(lambda: harness.timing.seconds(arm.run), rounds=3)
