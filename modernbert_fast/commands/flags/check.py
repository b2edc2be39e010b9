"""Checks what runs here: each op against the float64 reference, the whole model against transformers."""

import argparse

from modernbert_fast.commands.flags.shared import add_device_arguments

help = "prove on this machine that outputs match"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_arguments(parser)
