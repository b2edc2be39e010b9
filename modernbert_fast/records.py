"""Rows of jsonl and csv files, each with its place and what reads it: one that cannot be read loses no other."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Rows = Iterator[tuple[str, Callable[[], Row]]]  # a place, such as "line 3", and what reads the row there


def read_jsonl(path: Path) -> Rows:
    """An object a line, by its keys."""
    return ((place, partial(_json, line)) for place, line in lines(path))


def read_csv(path: Path) -> Rows:
    """A row by the names of the header; a blank line is none.

    Raises:
        ValueError: by file and line, where the reader cannot tell where the next row starts.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses texts over 128 KiB
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, [])
            for row in filter(None, rows):
                yield f"line {rows.line_num}", partial(named, header, row)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, after line {rows.line_num}: {not_utf8(error)}") from error
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}") from error


def lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file and their places; without a byte-order mark, which some editors put first."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            yield f"line {number}", line.removesuffix(b"\n").removesuffix(b"\r")


def decode(line: bytes) -> str:
    """Raises ValueError for what is no text."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(error)) from error


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong, in words."""
    return f"not UTF-8 ({error.reason} at byte {error.start})"


def named(columns: Sequence[str], fields: Sequence[str]) -> Row:
    """The fields by the names of their columns.

    Raises:
        ValueError: as many are not there.
    """
    if len(fields) != len(columns):
        raise ValueError(f"has {len(fields)} fields, {len(columns)} were expected: {', '.join(columns)}")
    return dict(zip(columns, fields, strict=True))


def _json(line: bytes) -> Row:
    try:
        row = json.loads(decode(line))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from error
    except RecursionError:
        raise ValueError("not JSON (nested too deeply)") from None
    if not isinstance(row, dict):
        raise ValueError(f"is {type(row).__name__}, not an object of named fields")
    return row
