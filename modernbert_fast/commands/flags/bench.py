"""Times stock transformers against the accelerated model: checked first, then interleaved, in real tokens."""

import argparse
from pathlib import Path

from modernbert_fast.commands import workloads
from modernbert_fast.commands.flags.shared import (
    add_device_arguments,
    add_dtype_argument,
    add_model_arguments,
    positive,
)

help = "time stock transformers against the accelerated model"


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
