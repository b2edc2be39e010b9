"""Fine-tuning from flags: tasks and their recipes, seeds, results and submissions."""

import argparse
import contextlib
import dataclasses
import itertools
import math
import os
import reprlib
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from modernbert_fast.commands import CommandError, require
from modernbert_fast.commands.flags.finetune import BENCHMARKS
from modernbert_fast.commands.models import (
    choose_device,
    folder_of,
)
from modernbert_fast.durable import write_json
from modernbert_fast.training import custom
from modernbert_fast.training.tasks import Benchmark, Examples, Recipe, Task, score
from modernbert_fast.untrusted import read_json

RECIPE = Recipe(5e-5, 1e-5, 3)  # of tasks that nobody has tuned
RECORD = "finetune.json"  # the last file that a training writes
LARGE = 1024  # hidden width from which a model takes the recipes of large


def run(args: argparse.Namespace) -> int:
    for module in ("transformers", "accelerate", "scipy", "sklearn"):
        require(module, "train")
    train = _benchmark if args.form in BENCHMARKS else _custom
    try:
        if os.environ.get("RANK", "0") == "0":
            return train(args)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            return train(args)  # of several processes the first one speaks
    except (OSError, ValueError, ImportError) as error:
        raise CommandError(str(error)) from error


def _custom(args: argparse.Namespace) -> int:
    malformed = reporter(args)
    folders = [args.output / f"seed-{seed}" if args.seeds > 1 else args.output for seed in range(args.seeds)]
    _claim(args, folders)
    names = {name: value for name, value in vars(args).items() if name in ("texts", "label", "start", "regression")}
    layout = dataclasses.replace(custom.LAYOUTS[args.form], **{**names, "texts": tuple(args.texts)})
    train = custom.read(layout, args.train, None, malformed=malformed)
    task = custom.make_task(layout, custom.classes(layout, train))
    dev = custom.read(layout, args.eval, task.labels or None, malformed=malformed)
    record = {"layout": dataclasses.asdict(layout), "labels": task.labels}
    runs = []
    for seed, folder in enumerate(folders):
        runs.append(_train(args, task, folder_of(args.model), train, {"eval": dev}, folder, RECIPE, seed, record)[1])
    print(_line(task.name, runs))
    return 0


def _benchmark(args: argparse.Namespace) -> int:
    benchmark, malformed = BENCHMARKS[args.form], reporter(args)
    file = args.output / "results.json"
    results = _results(file, benchmark) if file.exists() else {}  # of other tasks, trained before
    tasks = [task for name, task in benchmark.TASKS.items() if name in args.tasks]
    folders = {task.name: [args.output / task.name / f"seed-{seed}" for seed in range(args.seeds)] for task in tasks}
    _claim(args, itertools.chain(*folders.values()))
    for task in tasks:
        train = benchmark.read(task, args.data, "train", malformed)
        dev = {split: benchmark.read(task, args.data, split, malformed) for split in task.dev}
        start = _start(args, task)
        recipe = task.recipes[args.size or _size(start)]
        runs: list[dict[str, float]] = []
        for seed, folder in enumerate(folders[task.name]):
            record = {"benchmark": args.form, "task": task.name}
            trainer, values = _train(args, task, start, train, dev, folder, recipe, seed, record)
            if score(values) > max(map(score, runs), default=-math.inf):
                predict_tests(trainer, benchmark, task, args.data, args.output / "submission")
            runs.append(values)
        results[task.name] = runs
        write_json(file, results)
    print("\n".join(_line(name, results[name]) for name in benchmark.TASKS if name in results))
    return 0


def _claim(args: argparse.Namespace, folders: Iterable[Path]) -> None:
    """Raises CommandError where a former training has come to its end, unless it may be overwritten."""
    for folder in folders:
        if (folder / RECORD).exists() and not args.overwrite:
            raise CommandError(f"{folder} holds a result: choose another --output, or replace it with --overwrite")


def _train(
    args: argparse.Namespace,
    task: Task,
    start: Path,
    train: Examples,
    dev: dict[str, Examples],
    folder: Path,
    recipe: Recipe,
    seed: int,
    record: dict[str, Any],
) -> tuple[Any, dict[str, float]]:
    """One training, saved with a record that `evaluate` reads; its trainer and the metrics of every dev set."""
    from modernbert_fast.training.finetuning import finetune

    given = {name: getattr(args, name) for name in ("learning_rate", "weight_decay", "epochs", "batch_size")}
    recipe = dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})
    print(f"{task.name}: {len(train)} examples, seed {seed}, from {start}", file=sys.stderr, flush=True)
    first = next(iter(dev.values()))
    # The record of a former training would vouch for weights of this one, should it be killed.
    (folder / RECORD).unlink(missing_ok=True)
    trainer = finetune(task, start, train, first, folder, recipe, settings_of(args), seed)
    values = {
        f"{split}_{name}" if len(dev) > 1 else name: value
        for split, examples in dev.items()
        for name, value in task.measure(examples, trainer.outputs(examples)).items()
    }
    record |= {"start": str(start), "max_length": trainer.max_length, "seed": seed, "steps": trainer.state.global_step}
    details = {"recipe": dataclasses.asdict(recipe), "metrics": values}
    write_json(folder / RECORD, {**record, **details})
    return trainer, values


def predict_tests(trainer: Any, benchmark: ModuleType, task: Benchmark, data: str, folder: Path) -> None:
    """Writes the submission files of the test sets that are there."""
    for name, split in task.tests.items():
        try:
            examples = benchmark.read(task, data, split)
        except FileNotFoundError as error:
            print(f"no {name}: {error}", file=sys.stderr)
            continue
        benchmark.write_submission(task, folder / name, examples, trainer.outputs(examples))


def settings_of(args: argparse.Namespace) -> Any:
    """finetuning.Settings of the arguments that the command has."""
    from modernbert_fast.training.finetuning import Settings

    device = choose_device(args)
    if device.index is not None:
        raise CommandError(f"--device {device}: choose one of several GPUs with CUDA_VISIBLE_DEVICES")
    names = {field.name for field in dataclasses.fields(Settings)}
    return Settings(**{k: v for k, v in vars(args).items() if k in names}, cpu=device == torch.device("cpu"))


def reporter(args: argparse.Namespace) -> Callable[[str], None] | None:
    """What is told of malformed rows; None where they end the command."""
    return (lambda complaint: print(f"skipped {complaint}", file=sys.stderr)) if args.skip_malformed else None


def _start(args: argparse.Namespace, task: Benchmark) -> Path:
    """The checkpoint that a task starts from: MNLI's for those that need it, the best of its seeds."""
    if not task.warm_start:
        return folder_of(args.model)
    if args.init_from:
        return folder_of(args.init_from)
    trained = sorted((args.output / "MNLI").glob(f"seed-*/{RECORD}"), key=_score_of)
    if trained:
        return trained[-1].parent
    print(f"{task.name}: no model of MNLI to start from (--init-from); scores will be lower", file=sys.stderr)
    return folder_of(args.model)


def _score_of(file: Path) -> float:
    return score(_metrics(file, "metrics", read_json(file).get("metrics")))


def _results(file: Path, benchmark: ModuleType) -> dict[str, list[dict[str, float]]]:
    """The metrics of every seed by task."""
    results = read_json(file)
    for name, runs in results.items():
        if name not in benchmark.TASKS or not isinstance(runs, list) or not runs:
            raise ValueError(f"{file}, key {name!r}: expected a task and a list of its metrics, a seed each")
        if len({tuple(_metrics(file, name, run)) for run in runs}) > 1:
            raise ValueError(f"{file}, key {name!r}: the metrics of its seeds differ in their names")
    return results


def _metrics(file: Path, key: str, value: Any) -> dict[str, float]:
    """The value.

    Raises:
        ValueError: it is no object of numbers.
    """
    if not isinstance(value, dict) or not value or not all(type(number) in (int, float) for number in value.values()):
        raise ValueError(f"{file}, key {key!r}: expected metrics by name, got {reprlib.repr(value)}")
    return value


def _size(checkpoint: Path) -> str:
    from transformers import AutoConfig

    return "large" if AutoConfig.from_pretrained(checkpoint).hidden_size >= LARGE else "base"


def _line(name: str, runs: list[dict[str, float]]) -> str:
    """A line of the results table: the mean over seeds of every metric and of the score, in percent."""
    means = {metric: 100 * statistics.fmean(run[metric] for run in runs) for metric in runs[0]}
    scores = [100 * score(run) for run in runs]
    spread = f" ± {statistics.stdev(scores):.1f} ({len(runs)} seeds)" if len(runs) > 1 else ""
    shown = ", ".join(f"{metric} {value:.1f}" for metric, value in means.items())
    return f"{name:<15}{statistics.fmean(scores):6.1f}{spread}   {shown}"
