"""The whole job: real English text through stock transformers and through us, compared; then a small trained model."""

import argparse

from modernbert_fast.commands.flags.shared import (
    add_device_arguments,
    add_dtype_argument,
    add_model_arguments,
    positive,
)

help = "encode real text with stock transformers and with us: parity, tokens/s, memory; fill masks, find paragraphs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--texts", type=positive, default=12, help="how many texts (default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=6, help="texts per batch (default: %(default)s)")
    parser.add_argument(
        "--max-length", type=positive, default=768, help="leave out longer texts (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=positive, default=1, help="samples per arm (default: %(default)s)")
    add_dtype_argument(parser)
    add_device_arguments(parser)
