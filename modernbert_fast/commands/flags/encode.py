"""Embeds every text of a file: packed batches, bounded memory, no row lost or doubled after a kill.

Under torchrun the processes share the texts; with --ray the actors of a Ray cluster do. The vectors are the same.
"""

import argparse
from pathlib import Path

from modernbert_fast.commands.flags.shared import DTYPES, add_device_arguments, gpus, positive
from modernbert_fast.commands.store import WRITERS
from modernbert_fast.texts import READERS

help = "embed the texts of a file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help=f"texts: {', '.join(READERS)}; a .txt holds one text a line")
    parser.add_argument("output", type=Path, help=f"float32 matrix, a row a text, in input order: {', '.join(WRITERS)}")
    parser.add_argument("--model", required=True, help="checkpoint folder or Hugging Face name (a name may download)")
    parser.add_argument("--tokenizer", help="folder or name, where it is not the model's own")
    parser.add_argument("--field", default="text", help="key or column of the text (default: %(default)s)")
    parser.add_argument("--pooling", choices=("cls", "mean"), default="cls", help="default: %(default)s")
    parser.add_argument("--normalize", action="store_true", help="scale every row to length 1")
    parser.add_argument(
        "--max-length", type=positive, help="cut texts to this many tokens (default: the model's limit)"
    )
    parser.add_argument("--max-tokens", type=positive, default=16384, help="tokens per batch (default: %(default)s)")
    parser.add_argument("--shard", type=positive, default=256, help="texts per restart point (default: %(default)s)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue a run that was stopped; fine if there is none")
    again.add_argument("--overwrite", action="store_true", help="drop what is there and start anew")
    parser.add_argument("--dtype", choices=DTYPES, help="of weights and activations (default: as stored)")
    parser.add_argument("--ray", metavar="ADDRESS", help="embed on a Ray cluster: its address, auto, or local")
    parser.add_argument("--actors", type=positive, default=2, help="models on the cluster (default: %(default)s)")
    parser.add_argument("--gpus", type=gpus, default=0, help="GPUs of each (default: %(default)s, they run on the CPU)")
    add_device_arguments(parser)
