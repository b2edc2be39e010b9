"""The command line: modernbert-fast COMMAND; each command is a file in commands/."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from modernbert_fast import __version__, library
from modernbert_fast.commands import CommandError
from modernbert_fast.dispatch import NoBackend

COMMANDS = ("info", "check", "bench", "encode", "index", "pretrain", "finetune", "evaluate", "demo")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0 when all is well, 1 when a comparison failed, 2 when the request cannot be served, 130 on Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    try:
        _check_environment()
        return args.run(args)
    except (CommandError, NoBackend) as error:
        print(f"modernbert-fast {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _check_environment() -> None:
    """A MODERNBERT_FAST_ISA that this machine cannot serve would fail every command, deep inside."""
    try:
        library.isa()
    except ValueError as error:
        raise CommandError(str(error)) from error


def build_parser() -> argparse.ArgumentParser:
    """The parser with one subparser a command."""
    parser = argparse.ArgumentParser(
        prog="modernbert-fast", description="ModernBERT, faster: same weights, same outputs."
    )
    parser.add_argument("--version", action="version", version=f"modernbert-fast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name in COMMANDS:
        command = importlib.import_module(f"modernbert_fast.commands.{name}")
        subparser = commands.add_parser(name, help=command.help, description=command.__doc__)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser
