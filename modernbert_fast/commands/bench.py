"""Times stock transformers against the accelerated model: checked first, then interleaved, in real tokens."""

import argparse
from pathlib import Path
from typing import Any

import torch

from modernbert_fast import encoder
from modernbert_fast.commands import CommandError, workloads
from modernbert_fast.commands.batches import pad
from modernbert_fast.commands.models import (
    add_device_arguments,
    add_dtype_argument,
    add_model_arguments,
    choose_device,
    load_pair,
    load_tokenizer,
    positive,
)
from modernbert_fast.commands.parity import Parity, ParityError, parity_of_batch
from modernbert_fast.timing import Arm, Measurement, interleave, machine_facts, write_json

help = "time stock transformers against the accelerated model"

STOCK, COMPILED, FAST, LINEARS = "transformers sdpa", "torch.compile", "modernbert_fast", "linears alone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    names = ",".join(workloads.NAMED)
    parser.add_argument("--workloads", default=names, help="comma-separated: var, or BxS (default: %(default)s)")
    parser.add_argument("--texts", type=Path, help="take the lengths from these texts instead (needs a tokenizer)")
    parser.add_argument("--field", default="text", help="key or column of --texts (default: %(default)s)")
    parser.add_argument("--tokenizer", help="folder or name, where it is not --model's own")
    parser.add_argument("--batch", type=positive, default=32, help="texts per batch of --texts (default: %(default)s)")
    parser.add_argument(
        "--compile", action="store_true", help="also time stock under torch.compile (compiles for minutes)"
    )
    parser.add_argument("--rounds", type=positive, default=3, help="samples per arm (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for bench.json and, with matplotlib, bench.png")
    add_dtype_argument(parser)
    add_device_arguments(parser)


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
    print(HEADER)
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
            if name not in ("run", "output")
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

    def forward(module: Any) -> torch.Tensor:
        with torch.inference_mode():
            return module(**inputs).last_hidden_state

    arms = [Arm(STOCK, lambda: forward(model), lambda hidden: parity.yardstick(STOCK, hidden))]
    if compiled:
        module = torch.compile(model)
        arms.append(Arm(COMPILED, lambda: forward(module), lambda hidden: parity.check(COMPILED, hidden)))
    arms.append(Arm(FAST, lambda: forward(fast), lambda hidden: parity.check(FAST, hidden)))
    arms.append(Arm(LINEARS, lambda: linears(fast, workload.tokens)))
    measured = interleave(arms, rounds)
    return {
        "workload": workload.name,
        "lengths": list(workload.lengths),
        "tokens": workload.tokens,
        "padding": workload.padding,
        "error_limit": parity.limit,
        "arms": [_arm(measurement, workload.tokens, measured, parity) for measurement in measured],
    }


def linears(model: Any, tokens: int) -> None:
    """The limit: nothing but the encoder's matrix products, on as many packed rows as there are tokens."""
    weight = model.layers[0].attn.Wo.weight
    x = weight.new_ones(tokens, model.config.hidden_size)
    h = weight.new_ones(tokens, model.config.intermediate_size)
    with torch.inference_mode():
        for layer in model.layers:
            for linear in (layer.attn.Wqkv, layer.attn.Wo, layer.mlp.Wi):
                encoder.project(linear, x)
            encoder.project(layer.mlp.Wo, h)


def _arm(measurement: Measurement, tokens: int, measured: list[Measurement], parity: Parity) -> dict[str, Any]:
    stock, limit = (next(m.median for m in measured if m.name == name) for name in (STOCK, LINEARS))
    return {
        **measurement.as_dict(),
        "tokens_per_second": tokens / measurement.median,
        "speedup": stock / measurement.median,
        "share_of_limit": limit / measurement.median,
        "max_error": parity.errors.get(measurement.name),
    }


HEADER = (
    f"{'workload':<12} {'tokens':>6} {'pad':>4}  {'arm':<18} {'ms':>9} {'p20':>9} {'p80':>9} {'tokens/s':>9}"
    f" {'x stock':>8} {'of limit':>8} {'peak MiB':>8} {'error':>8}"
)


def render(result: dict[str, Any]) -> str:
    """One workload as lines under HEADER."""
    lines = []
    for arm in result["arms"]:
        head = f"{result['workload']:<12} {result['tokens']:>6} {result['padding']:>4.0%}  {arm['name']:<18}"
        times = " ".join(f"{arm[key] * 1e3:>9.1f}" for key in ("median", "p20", "p80"))
        peak = "-" if arm["peak_bytes"] is None else f"{arm['peak_bytes'] / 2**20:.0f}"
        error = "-" if arm["max_error"] is None else f"{arm['max_error']:.1e}"
        ratios = f"{arm['speedup']:>7.2f}x {arm['share_of_limit']:>8.0%}"
        lines.append(f"{head} {times} {arm['tokens_per_second']:>9.0f} {ratios} {peak:>8} {error:>8}")
    return "\n".join(lines)


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
