"""Stock transformers and the accelerated model: checked first, then interleaved, in real tokens."""

import argparse
from pathlib import Path
from typing import Any

import torch

from modernbert_fast.commands import CommandError, workloads
from modernbert_fast.commands.batches import pad
from modernbert_fast.commands.comparison import FAST, LINEARS, STOCK, forward, header, linears, record, render
from modernbert_fast.commands.models import (
    choose_device,
    load_pair,
    load_tokenizer,
)
from modernbert_fast.commands.parity import ParityError, parity_of_batch
from modernbert_fast.durable import write_json
from modernbert_fast.timing import Arm, interleave, machine_facts

COMPILED = "torch.compile"


def run(args: argparse.Namespace) -> int:
    device = choose_device(args)
    facts = machine_facts()  # now: the checkout may change while this runs
    model, fast = load_pair(args, device)
    chosen = choose_workloads(args, model.config)
    results: list[dict[str, Any]] = []
    print(
        f"{args.model or f'{args.preset}, random weights'}, {args.dtype} on {device}, {args.rounds} rounds",
        flush=True,
    )
    print(header())
    try:
        for workload in chosen:
            result = measure(workload, model, fast, args.rounds, args.compile)
            results.append(result)
            print(render(result), flush=True)
    except ParityError as error:
        print(f"{workload.name}: {error}; not timed")
        return 1
    if args.output is not None:
        options = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(args).items()
            if name != "output"
        }
        write_json(args.output / "bench.json", {"options": options, "machine": facts, "results": results})
        print(f"wrote {args.output / 'bench.json'}" + plot(results, args.output / "bench.png"))
    return 0


def choose_workloads(args: argparse.Namespace, config: Any) -> list[workloads.Workload]:
    """The named workloads, or the user's own lengths."""
    if args.texts is None:
        chosen = [workloads.parse(name) for name in args.workloads.split(",")]
    elif args.tokenizer or args.model:
        tokenizer = load_tokenizer(args.tokenizer or args.model)
        limit = config.max_position_embeddings
        chosen = workloads.from_texts(args.texts, args.field, tokenizer, args.batch, limit)
    else:
        raise CommandError("--texts needs a tokenizer: give --tokenizer or --model")
    for workload in chosen:
        if max(workload.lengths) > config.max_position_embeddings:
            raise CommandError(
                f"workload {workload.name} is beyond the model's {config.max_position_embeddings} positions"
            )
    return chosen


def measure(workload: workloads.Workload, model: Any, fast: Any, rounds: int, compiled: bool) -> dict[str, Any]:
    """Checks and times every arm on one workload.

    Raises:
        ParityError: an arm is wrong; nothing of this workload was timed.
    """
    inputs = pad(workload.ids(model.config.vocab_size), model.config.pad_token_id, model.device)
    parity = parity_of_batch(model, **inputs)

    arms = [Arm(STOCK, lambda: forward(model, inputs), lambda hidden: parity.yardstick(STOCK, hidden))]
    if compiled:
        module = torch.compile(model)
        arms.append(Arm(COMPILED, lambda: forward(module, inputs), lambda hidden: parity.check(COMPILED, hidden)))
    arms.append(Arm(FAST, lambda: forward(fast, inputs), lambda hidden: parity.check(FAST, hidden)))
    arms.append(Arm(LINEARS, lambda: linears(fast, workload.tokens)))
    return record(workload, interleave(arms, rounds), parity)


def plot(results: list[dict[str, Any]], path: Path) -> str:
    """Bars of tokens per second; returns what to tell the user."""
    try:
        import matplotlib
    except ImportError:
        return " (no plot: pip install 'modernbert-fast[bench]')"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [arm["name"] for arm in results[0]["arms"]]
    figure, axes = pyplot.subplots(figsize=(2 + 2 * len(results), 4), layout="constrained")
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [column + number * width for column in range(len(results))]
        bars = axes.bar(places, [result["arms"][number]["tokens_per_second"] for result in results], width, label=name)
        axes.bar_label(bars, fmt="{:.0f}", fontsize=7)
    axes.set_xticks([column + 0.4 - width / 2 for column in range(len(results))], [r["workload"] for r in results])
    axes.set_ylabel("real tokens / s")
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return f" and {path}"
