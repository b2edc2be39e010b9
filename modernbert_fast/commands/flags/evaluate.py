"""Metrics and predictions of a folder that `finetune` made."""

import argparse
from pathlib import Path

from modernbert_fast.commands.flags.shared import add_device_arguments, positive

help = "metrics and predictions of a fine-tuned model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="folder that finetune made")
    parser.add_argument("data", help="file like those it was trained on; of GLUE and SuperGLUE their folder")
    parser.add_argument(
        "--output", type=Path, help="predictions: a jsonl file; of GLUE and SuperGLUE a folder of submissions"
    )
    parser.add_argument("--no-labels", action="store_true", help="the file has none: predictions alone")
    parser.add_argument("--batch-size", type=positive, default=64, help="texts of a batch (default: %(default)s)")
    parser.add_argument("--max-length", type=positive, help="cut texts to this many tokens (default: as trained)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of matrix products"
    )
    parser.add_argument("--skip-malformed", action="store_true", help="name malformed rows on stderr and go on without")
    add_device_arguments(parser)
