"""Pre-trains a ModernBERT on local text or a named dataset: the paper's recipe, one from a file, or one's own sizes."""

import argparse
from pathlib import Path

from modernbert_fast.commands.flags.shared import positive
from modernbert_fast.training import presets

help = "pre-train, or continue, on text: masked tokens and sentence order"


OBJECTIVES = {"mlm": 0, "mlm+order": 2, "mlm+order3": 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "output", type=Path, help="folder of the run: stores, checkpoints, logs, and in the end `model`"
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        action="append",
        required=True,
        help="a folder (each .txt in it a document), a file (.txt with a document a line, .jsonl, .csv, .parquet), or "
        "hf:NAME[:CONFIG[:SPLIT]]; may be repeated",
    )
    data.add_argument("--field", default="text", help="key or column of the text (default: %(default)s)")
    data.add_argument("--held-out", type=share, default=0.01, help="share of documents to evaluate on (default: 0.01)")
    data.add_argument("--tokenizer", help="folder or Hugging Face name (default: --init-from's, or one trained here)")
    data.add_argument(
        "--vocabulary", type=positive, default=8192, help="entries of a tokenizer trained here (default: %(default)s)"
    )
    data.add_argument("--workers", type=natural, default=0, help="processes that tokenise and mask (default: 0)")

    what = parser.add_argument_group("what to train")
    recipe = what.add_mutually_exclusive_group()
    recipe.add_argument("--preset", choices=presets.PRESETS, help="the paper's sizes and phases")
    recipe.add_argument("--recipe", type=Path, help="JSON of sizes and phases, see modernbert_fast/training/presets.py")
    what.add_argument(
        "--objective", choices=OBJECTIVES, default="mlm", help="default: %(default)s; order of two or 3 ways"
    )
    what.add_argument("--init-from", help="weights to start from; smaller ones are tiled to the sizes asked for")
    what.add_argument("--layers", type=positive, help="default: 4")
    what.add_argument("--hidden", type=positive, help="width, a multiple of 64 (default: 256)")
    what.add_argument("--intermediate", type=positive, help="width of the MLP (default: 1.5 times --hidden)")
    what.add_argument("--local-attention", type=positive, help="tokens that a local layer sees (default: 128)")
    what.add_argument("--tokens", type=positive, help="to train on (default: 10 million)")
    what.add_argument("--max-length", type=positive, help="longest text in tokens (default: 512)")
    what.add_argument("--rope-theta", type=float, help="rope base of global layers (default: 10,000)")
    what.add_argument("--batch", type=positive, help="texts of full length in a step (default: 32)")
    what.add_argument(
        "--micro-batch", type=positive, help="of them in one forward (default: as many as --batch, at most 32)"
    )
    what.add_argument("--learning-rate", type=float, help="default: 8e-4")
    what.add_argument("--warmup", type=share, help="share of the tokens (default: 0.02)")
    what.add_argument("--decay", type=share, help="share of the tokens, by 1 - sqrt (default: 0.2)")
    what.add_argument("--masked", type=share, help="share of tokens to predict (default: 0.3)")
    what.add_argument("--mask-special", action="store_true", help="mask [CLS] and [SEP] too, as the paper's code does")
    what.add_argument("--seed", type=natural, default=0, help="default: %(default)s")

    how = parser.add_argument_group("how", "Start it with torchrun or accelerate launch to use several processes.")
    how.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of autocast (default: fp32)"
    )
    how.add_argument("--checkpointing", action="store_true", help="compute activations again in the backward pass")
    how.add_argument("--mask-on-device", action="store_true", help="mask where the model is, not where data is read")
    how.add_argument("--shard", action="store_true", help="spread weights and moments over the processes (FSDP2)")
    how.add_argument(
        "--average", type=positive, default=1, help="checkpoints to average in the end (default: 1, the last)"
    )
    how.add_argument("--log-steps", type=positive, help="steps between records (default: 200 records a phase)")
    how.add_argument(
        "--save-steps", type=positive, help="steps between checkpoints, with evaluation (default: 10 a phase)"
    )
    how.add_argument("--no-tensorboard", action="store_true", help="write history.jsonl and history.png alone")
    how.add_argument("--device", choices=("cpu",), help="cpu, though there is an accelerator")
    how.add_argument("--threads", type=positive, help="CPU threads (default: torch's own choice)")
    how.add_argument("--resume", action="store_true", help="go on with a run that was stopped; fine if there is none")
    how.add_argument("--dry-run", action="store_true", help="print the plan and stop")


def share(text: str) -> float:
    """An argparse type: a number from 0 up to, not including, 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 up to 1")
    return value


def natural(text: str) -> int:
    """An argparse type: an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value
