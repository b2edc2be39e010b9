"""The command line: modernbert-fast COMMAND; each has a file in commands/ and its flags in commands/flags/."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from modernbert_fast import __version__
from modernbert_fast.commands import CommandError

COMMANDS = ("info", "check", "bench", "encode", "index", "pretrain", "finetune", "evaluate", "demo")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0 when all is well, 1 when a comparison failed, 2 when the request cannot be served, 130 on Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    try:
        return _run(args)
    except CommandError as error:
        print(f"modernbert-fast {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: argparse.Namespace) -> int:
    from modernbert_fast import dispatch, library  # with torch, which takes seconds: not before the flags are right

    try:
        library.isa()
    except ValueError as error:  # it would fail every command, deep inside
        raise CommandError(str(error)) from error
    try:
        return importlib.import_module(f"modernbert_fast.commands.{args.command}").run(args)
    except dispatch.NoBackend as error:
        raise CommandError(str(error)) from error


def build_parser() -> argparse.ArgumentParser:
    """The parser with one subparser a command."""
    parser = argparse.ArgumentParser(
        prog="modernbert-fast", description="ModernBERT, faster: same weights, same outputs."
    )
    parser.add_argument("--version", action="version", version=f"modernbert-fast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name in COMMANDS:
        flags = importlib.import_module(f"modernbert_fast.commands.flags.{name}")
        flags.add_arguments(commands.add_parser(name, help=flags.help, description=flags.__doc__))
    return parser
