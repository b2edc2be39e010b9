"""Shows versions, hardware, what was built or why not, and which backend each op takes here."""

import argparse

help = "what is installed, built and used on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same facts for a program")
