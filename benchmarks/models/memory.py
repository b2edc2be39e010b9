"""Peak memory of one text of S tokens above the weights, each length in a process of its own.

python benchmarks/run.py models/memory --dtype bfloat16 --lengths 512,1024,2048,4096,8192,16384,32768

first    peak of the first forward, above what was resident once the model was loaded: code pages that torch and its
         thread pool touch for the first time are in it, and so is what a kernel packs of the weights
kept     resident after it, above what was resident once the model was loaded
second   peak of another forward, above what was resident before it: activations alone
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import harness
import torch

from modernbert_fast import durable, timing
from modernbert_fast.commands.batches import pad
from modernbert_fast.commands.comparison import FAST, STOCK, forward
from modernbert_fast.commands.flags.shared import add_model_arguments, positive
from modernbert_fast.commands.models import load_pair
from modernbert_fast.commands.workloads import Workload

RUN = harness.FOLDER / "run.py"
LENGTHS = "512,1024,2048,4096,8192,16384,32768"
STOCK_UP_TO = 4096  # beyond, its masks and its time grow with the square


def growth(args: argparse.Namespace, length: int, arm: str) -> dict[str, Any]:
    """Bytes of one arm at one length, in this process."""
    pair = dict(zip((STOCK, FAST), load_pair(args, torch.device("cpu")), strict=True))
    model = pair.pop(arm)
    pair.clear()
    ids = Workload("", (length,)).ids(model.config.vocab_size)
    inputs = {"input_ids": pad(ids, model.config.pad_token_id, model.device)["input_ids"]}
    loaded = timing.resident_memory()

    def run() -> None:
        forward(model, inputs)

    _, first = timing.peak_memory(run)
    after = timing.resident_memory()
    _, second = timing.peak_memory(run)
    kept = None if loaded is None or after is None else after - loaded
    return {"arm": arm, "tokens": length, "first": first, "kept": kept, "second": second}


def main(argv: list[str]) -> None:
    parser = harness.parser("models/memory", __doc__)
    add_model_arguments(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--lengths", default=LENGTHS, help="default: %(default)s")
    parser.add_argument("--stock-up-to", type=int, default=STOCK_UP_TO, help="longest for stock (default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--arm", help=argparse.SUPPRESS)  # this process is the one that measures
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.arm:
        print(json.dumps(growth(args, int(args.lengths), args.arm)))
        return
    facts = timing.machine_facts()
    path = harness.record_path(args.output, f"memory-{args.dtype}.json")
    given = ["--dtype", args.dtype, "--threads", str(args.threads)]
    given += ["--model", args.model] if args.model else ["--preset", args.preset]
    records: list[dict[str, Any]] = []
    print(f"{'arm':<18} {'tokens':>7} {'first MiB':>10} {'kept MiB':>10} {'second MiB':>10} {'KiB a token':>12}")
    for arm, longest in ((FAST, None), (STOCK, args.stock_up_to)):
        for length in map(int, args.lengths.split(",")):
            if longest is not None and length > longest:
                continue
            command = [sys.executable, str(RUN), "models/memory", *given, "--lengths", str(length), "--arm", arm]
            answer = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if answer.returncode:  # out of memory is an answer too
                records.append({"arm": arm, "tokens": length, "failed": f"exit status {answer.returncode}"})
                print(f"{arm:<18} {length:>7} failed: exit status {answer.returncode}", flush=True)
            else:
                records.append(json.loads(answer.stdout.splitlines()[-1]))
                print(_line(records[-1]), flush=True)
            durable.write_json(path, {"options": _options(args), "machine": facts, "records": records})
    print(path)


def _line(record: dict[str, Any]) -> str:
    sizes = [record[name] for name in ("first", "kept", "second")]
    shown = " ".join(f"{'-' if size is None else format(size / 2**20, '.0f'):>10}" for size in sizes)
    each = "-" if record["second"] is None else f"{record['second'] / 2**10 / record['tokens']:.1f}"
    return f"{record['arm']:<18} {record['tokens']:>7} {shown} {each:>12}"


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if name not in ("output", "arm")}
