"""Fine-tunes a ModernBERT: on GLUE or SuperGLUE with the paper's recipes, or on csv or jsonl files of one's own."""

import argparse
from pathlib import Path
from types import ModuleType

from modernbert_fast.commands.flags.shared import add_device_arguments, positive
from modernbert_fast.training import custom, glue, superglue

help = "fine-tune on GLUE, SuperGLUE or files of your own"


BENCHMARKS: dict[str, ModuleType] = {"glue": glue, "superglue": superglue}


WHAT = {
    "classification": "texts into classes, or to numbers with --regression",
    "pairs": "pairs of texts into classes, or to numbers with --regression",
    "tokens": "words into tags, e.g. named entities",
    "qa": "answers to questions, found in a context",
    "glue": "CoLA, SST-2, QQP, MNLI, QNLI, RTE, MRPC, STS-B, WNLI",
    "superglue": "BoolQ, CB, COPA, MultiRC, ReCoRD, RTE, WiC, WSC",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    forms = parser.add_subparsers(dest="form", metavar="task", required=True)
    for name, what in WHAT.items():
        form = forms.add_parser(name, help=what, description=f"Fine-tunes a ModernBERT: {what}.")
        form.add_argument("--model", required=True, help="checkpoint folder or Hugging Face name (a name may download)")
        form.add_argument("--output", required=True, type=Path, help="folder of the result")
        form.add_argument("--overwrite", action="store_true", help="where a former result is in the way, replace it")
        _add_benchmark(form, BENCHMARKS[name]) if name in BENCHMARKS else _add_custom(form, custom.LAYOUTS[name])
        _add_training(form)
        add_device_arguments(form)


def _add_benchmark(parser: argparse.ArgumentParser, benchmark: ModuleType) -> None:
    name = "nyu-mll/glue" if benchmark is glue else "aps/super_glue"
    parser.add_argument("--data", required=True, help=f"folder with a folder a task, as published; or hf:{name}")
    parser.add_argument(
        "--tasks", nargs="+", choices=benchmark.TASKS, default=list(benchmark.TASKS), help="default: all"
    )
    parser.add_argument(
        "--init-from", help="model of MNLI that RTE, MRPC and STS-B start from (default: the one trained here)"
    )
    parser.add_argument("--size", choices=("base", "large"), help="whose recipes (default: by the model's width)")


def _add_custom(parser: argparse.ArgumentParser, layout: custom.Layout) -> None:
    files = ".csv, .jsonl, .tsv, or hf:NAME[:CONFIG[:SPLIT]]"
    parser.add_argument("--train", required=True, help=f"file to train on: {files}")
    parser.add_argument("--eval", required=True, help="file to choose the best checkpoint by")
    fields = " ".join(layout.texts)
    parser.add_argument(
        "--texts",
        nargs=len(layout.texts),
        default=layout.texts,
        metavar="FIELD",
        help=f"what is read (default: {fields})",
    )
    parser.add_argument("--label", default=layout.label, metavar="FIELD", help="what is learned (default: %(default)s)")
    if layout.form == "qa":
        parser.add_argument(
            "--start", default=layout.start, metavar="FIELD", help="where the answer starts (default: start)"
        )
    if layout.form in ("classification", "pairs"):
        parser.add_argument("--regression", action="store_true", help="labels are numbers")


def _add_training(parser: argparse.ArgumentParser) -> None:
    own = "(default: the task's recipe)"
    parser.add_argument("--learning-rate", type=float, help=own)
    parser.add_argument("--weight-decay", type=float, help=own)
    parser.add_argument("--epochs", type=positive, help=own)
    parser.add_argument("--batch-size", type=positive, help=f"texts of a step on each process {own}")
    parser.add_argument("--accumulate", type=positive, default=1, help="micro-batches of a step (default: 1)")
    parser.add_argument(
        "--max-length", type=positive, help="cut texts to this many tokens (default: the model's limit)"
    )
    parser.add_argument("--evaluations", type=positive, default=10, help="of the dev set in a training (default: 10)")
    parser.add_argument("--patience", type=positive, default=3, help="stop after so many without progress (default: 3)")
    parser.add_argument("--seeds", type=positive, default=1, help="trainings, with seeds 0, 1 ... (default: 1)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of matrix products; weights stay float32 (default: %(default)s)",
    )
    parser.add_argument("--lora", type=positive, default=0, metavar="RANK", help="train adapters of this rank alone")
    parser.add_argument("--skip-malformed", action="store_true", help="name malformed rows on stderr and go on without")
