"""Where the time of our forward goes, op by op, on CPU.

python benchmarks/run.py models/breakdown --dtype float32 --workloads 1x64,var,1x8192

Time inside each of our registered ops, time in torch's own ops outside of them, and the rest: Python and dispatch.
The profiler slows what it watches, and watches the ops of a layer one by one; the plain time of the same forward stands
beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import harness
import torch
from torch.profiler import ProfilerActivity, profile

from modernbert_fast import dispatch, durable, library, timing
from modernbert_fast.commands import workloads
from modernbert_fast.commands.batches import pad
from modernbert_fast.commands.comparison import forward
from modernbert_fast.commands.flags.shared import add_model_arguments, positive
from modernbert_fast.commands.models import load_pair

OURS = f"{library.NAMESPACE}::"
OUTSIDE, REST = "torch's ops outside ours", "Python and dispatch"


def measure(workload: workloads.Workload, fast: Any, rounds: int) -> dict[str, Any]:
    """One workload: seconds a forward, plain and watched, and each op's calls and share of the watched time."""
    inputs = pad(workload.ids(fast.config.vocab_size), fast.config.pad_token_id, fast.device)
    forward(fast, inputs)
    plain = statistics.median(timing.seconds(lambda: forward(fast, inputs)) for _ in range(rounds))
    apart = dispatch.use_backend("reference", "encoder_layer")  # which is not run then: its ops are, one by one
    with apart, profile(activities=[ProfilerActivity.CPU]) as watched:
        wall = sum(timing.seconds(lambda: forward(fast, inputs)) for _ in range(rounds))
    spent: dict[str, list[float]] = {}
    for name, seconds in _spent(event for event in watched.events() if event.cpu_parent is None):
        spent.setdefault(name, []).append(seconds)
    layers = fast.config.num_hidden_layers
    ops = [
        {
            "op": name,
            "calls": len(taken) / rounds,
            "calls_per_layer": len(taken) / rounds / layers,
            "seconds": sum(taken) / rounds,
            "share": sum(taken) / wall,
        }
        for name, taken in sorted(spent.items(), key=lambda item: -sum(item[1]))
    ]
    rest = wall - sum(map(sum, spent.values()))
    ops.append({"op": REST, "calls": None, "calls_per_layer": None, "seconds": rest / rounds, "share": rest / wall})
    return {"workload": workload.name, "tokens": workload.tokens, "plain": plain, "watched": wall / rounds, "ops": ops}


def _spent(events: Any) -> Iterator[tuple[str, float]]:
    """Seconds in the outermost of our ops and in torch's ops outside of them; wrappers such as autograd's open up."""
    for event in events:
        if event.name.startswith(OURS):
            yield event.name.removeprefix(OURS), event.cpu_time_total / 1e6
        elif event.name.startswith("aten::"):
            yield OUTSIDE, event.cpu_time_total / 1e6
        else:
            yield from _spent(event.cpu_children)


def render(result: dict[str, Any]) -> str:
    """One workload as lines."""
    times = f"{result['plain'] * 1e3:.1f} ms a forward, {result['watched'] * 1e3:.1f} ms watched"
    lines = [f"{result['workload']}, {result['tokens']} tokens: {times}"]
    for op in result["ops"]:
        calls = "" if op["calls"] is None else f"{op['calls']:>8.0f} calls {op['calls_per_layer']:>6.2f} a layer"
        lines.append(f"  {op['op']:<28} {op['seconds'] * 1e3:>10.2f} ms {op['share']:>7.1%} {calls}")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = harness.parser("models/breakdown", __doc__)
    add_model_arguments(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--workloads", default="1x64,var,1x8192", help="default: %(default)s")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="default: %(default)s")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    facts = timing.machine_facts()
    fast = load_pair(args, torch.device("cpu"))[1]
    results = []
    for workload in map(workloads.parse, args.workloads.split(",")):
        results.append(measure(workload, fast, args.rounds))
        print(render(results[-1]), flush=True)
    path = harness.record_path(args.output, f"breakdown-{args.dtype}.json")
    options = {name: value for name, value in vars(args).items() if name != "output"}
    durable.write_json(path, {"options": options, "machine": facts, "results": results})
    print(path)
