"""Flags that several commands have, and the types of their values."""

import argparse

DTYPES = ("float32", "bfloat16", "float16")
PRESETS = ("base", "large")


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """--device and --threads."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: the accelerator if there is one)")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: torch's own choice)")


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """--dtype."""
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of weights and activations (default: %(default)s)"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model for real weights, --preset for random ones of a real shape."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="checkpoint folder or Hugging Face name (a name may download)")
    which.add_argument("--preset", choices=PRESETS, default="base", help="random weights of this shape (default: base)")


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def gpus(text: str) -> float:
    """An argparse type: GPUs of an actor, a share of one or a whole number."""
    value = float(text)
    if not (0 <= value <= 1 or (value > 1 and value.is_integer())):
        raise argparse.ArgumentTypeError(f"{text} is neither 0 to 1 nor a whole number")
    return value
