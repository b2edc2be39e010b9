"""Metrics and predictions from a folder that `finetune` made, whose record is checked first."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modernbert_fast import untrusted
from modernbert_fast.commands import CommandError, require
from modernbert_fast.commands.finetune import RECORD, predict_tests, reporter, settings_of
from modernbert_fast.commands.flags.finetune import BENCHMARKS
from modernbert_fast.durable import write_file
from modernbert_fast.training import custom
from modernbert_fast.training.tasks import Example, Examples, Task, best


def run(args: argparse.Namespace) -> int:
    for module in ("transformers", "accelerate", "scipy", "sklearn"):
        require(module, "train")
    try:
        record = _record(args.model / RECORD)
        return _benchmark(args, record) if "benchmark" in record else _custom(args, record)
    except (OSError, ValueError, ImportError) as error:
        raise CommandError(str(error)) from error


def _record(file: Path) -> dict[str, Any]:
    """What finetune says of the model, checked."""
    try:
        record = untrusted.read_json(file)
    except (OSError, ValueError) as error:
        raise CommandError(f"{file} cannot be read; evaluate takes a folder that finetune made ({error})") from error
    try:
        untrusted.integer("max_length", record.get("max_length"), 1, 2**31)
        if "benchmark" in record:
            untrusted.choice("benchmark", record["benchmark"], tuple(BENCHMARKS))
            untrusted.choice("task", record.get("task"), tuple(BENCHMARKS[record["benchmark"]].TASKS))
        else:
            _check_layout(untrusted.mapping("layout", record.get("layout")), _names("labels", record.get("labels")))
    except ValueError as error:
        raise CommandError(f"{file}: {error}") from error
    return record


def _check_layout(given: Mapping[str, Any], labels: Sequence[str]) -> None:
    """Raises ValueError for what is no custom.Layout, or has no classes though it needs some."""
    untrusted.choice("layout.form", given.get("form"), tuple(custom.LAYOUTS))
    layout = custom.LAYOUTS[given["form"]]
    if given.keys() != vars(layout).keys():
        untrusted.refuse("layout", f"the keys {', '.join(vars(layout))}", sorted(given))
    if len(_names("layout.texts", given["texts"])) != len(layout.texts):
        untrusted.refuse("layout.texts", f"{len(layout.texts)} names", given["texts"])
    for key in ("label", "start"):
        untrusted.text(f"layout.{key}", given[key])
    if not isinstance(given["regression"], bool):
        untrusted.refuse("layout.regression", "true or false", given["regression"])
    if layout.form != "qa" and bool(labels) == given["regression"]:
        untrusted.refuse("labels", "names of classes, and none of a regression", labels)


def _names(key: str, value: object) -> Sequence[str]:
    names = untrusted.sequence(key, value)
    if not all(isinstance(name, str) for name in names):
        untrusted.refuse(key, "a list of strings", value)
    return names


def _benchmark(args: argparse.Namespace, record: dict[str, Any]) -> int:
    benchmark = BENCHMARKS[record["benchmark"]]
    task = benchmark.TASKS[record["task"]]
    trainer = _trainer(args, task, record)
    for split in task.dev:
        examples = benchmark.read(task, args.data, split, reporter(args))
        _show(f"{task.name} {split}", task, examples, trainer.outputs(examples))
    if args.output:
        predict_tests(trainer, benchmark, task, args.data, args.output)
    return 0


def _custom(args: argparse.Namespace, record: dict[str, Any]) -> int:
    if args.output and not args.output.parent.is_dir():
        raise CommandError(f"--output {args.output}: there is no folder {args.output.parent}")
    layout = custom.Layout(**{**record["layout"], "texts": tuple(record["layout"]["texts"])})
    task = custom.make_task(layout, tuple(record["labels"]))
    examples = custom.read(layout, args.data, task.labels or None, not args.no_labels, reporter(args))
    outputs = _trainer(args, task, record).outputs(examples)
    if not args.no_labels:
        _show(args.data, task, examples, outputs)
    if args.output:
        text = "".join(map(_prediction, examples, outputs))
        write_file(args.output, lambda file: file.write(text.encode()))
        print(f"{len(outputs)} predictions in {args.output}", file=sys.stderr)
    return 0


def _prediction(example: Example, output: Any) -> str:
    """A line of JSON: where the row is, what is predicted, and how sure of each class."""
    kind, number = example.key.split()
    sure = {"probabilities": output} if isinstance(output, dict) else {}
    return json.dumps({kind: int(number), "prediction": best(output) if sure else output, **sure}) + "\n"


def _trainer(args: argparse.Namespace, task: Task, record: dict[str, Any]) -> Any:
    from modernbert_fast.training.finetuning import FineTuner, arguments, load_model, load_tokenizer

    model = load_model(task, args.model)
    settings = settings_of(args)
    limit = args.max_length or record["max_length"]
    training = arguments(args.model, settings, args.batch_size)
    return FineTuner(task, model, load_tokenizer(args.model), training, max_length=limit)


def _show(name: str, task: Task, examples: Examples, outputs: list[Any]) -> None:
    values = ", ".join(f"{metric} {100 * value:.1f}" for metric, value in task.measure(examples, outputs).items())
    print(f"{name}: {values} ({len(examples)} examples)")
