"""Exact search over texts: an index on disk that is built, changed, searched and verified; no kill loses a text."""

import argparse
from pathlib import Path

from modernbert_fast.commands.flags.shared import DTYPES, add_device_arguments, positive
from modernbert_fast.texts import READERS

help = "build, change, search and verify an index of texts"
STORED = ("float16", "int8", "residual4")  # retrieval.manifest.DTYPES, which a test compares


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    build = actions.add_parser("build", help="a new index of the texts of a file")
    build.add_argument("--store", choices=STORED, default=STORED[0], help="how vectors are kept (default: %(default)s)")
    build.add_argument(
        "--resume", action="store_true", help="go on with a build that was stopped; fine if there is none"
    )
    add = actions.add_parser("add", help="the texts of a file to an index")
    add.add_argument("--replace", action="store_true", help="a text whose id is there takes its place")
    delete = actions.add_parser("delete", help="texts by their ids")
    search = actions.add_parser("search", help="the best texts for each query, a line of JSON each")
    verify = actions.add_parser("verify", help="read every byte; exit code 1 if any is damaged")
    merge = actions.add_parser("merge", help="all texts in few files; gives the room of deleted ones back")
    for action in (build, add, delete, search, verify, merge):
        action.add_argument("index", type=Path, help="folder")
    for action in (build, add):
        action.add_argument("input", type=Path, help=f"texts: {', '.join(READERS)}; a .txt holds one text a line")
        action.add_argument("--field", default="text", help="key or column of the text (default: %(default)s)")
        action.add_argument("--id", help="key or column of the id (default: FILE:ROW, as texts.txt:1)")
        action.add_argument("--attributes", default="", help="keys or columns to filter by, as a,b,c")
        action.add_argument("--batch", type=positive, default=256, help="texts that are added together (default: 256)")
    delete.add_argument("ids", nargs="+")
    search.add_argument("queries", nargs="+")
    search.add_argument("-k", type=positive, default=10, help="texts a query (default: %(default)s)")
    search.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="only texts with this attribute"
    )
    for action in (build, add, search):
        needed = action is build
        action.add_argument(
            "--model", required=needed, help="checkpoint folder or name" + " (default: the index's own)" * (not needed)
        )
        action.add_argument("--dtype", choices=DTYPES, help="of weights and activations (default: as stored)")
        add_device_arguments(action)
