"""Rows of files in the formats that tasks are published in; none is dropped in silence.

A row that cannot be read raises ValueError with file and line, or goes to `malformed` as that sentence, and the rest
are read.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from modernbert_fast.training.documents import HUB, open_hub

T = TypeVar("T")
Row = dict[str, Any]
Rows = Iterator[tuple[str, Callable[[], Row]]]  # where a row is, and what reads it
Malformed = Callable[[str], object] | None


def read_rows(
    source: str | Path,
    build: Callable[[Row], Sequence[T]],
    *,
    columns: Sequence[str] = (),
    malformed: Malformed = None,
) -> list[T]:
    """What `build` makes of every row, in the file's order.

    Args:
        source: .tsv or .txt (fields between tabs, a quote is a character like any other), .jsonl or .csv; or
            hf:NAME[:CONFIG[:SPLIT]], a dataset of Hugging Face, fetched if it is not at hand.
        build: a row by names -> the items it holds; raises ValueError for one that makes no sense.
        columns: names of the fields of a tsv file without a header.
        malformed: is told of every row that cannot be read, instead of an exception.

    Raises:
        ValueError: a malformed row, by file and line; a file in no known format, or without any row to read.
        OSError: no such file.
    """
    items: list[T] = []
    for place, read in _rows(source, columns):
        try:
            items += build(read())
        except ValueError as error:
            complaint = f"{source}, {place}: {error}"
            if malformed is None:
                raise ValueError(complaint) from error
            malformed(complaint)
    if not items:
        raise ValueError(f"{source}: holds no row to read")
    return items


def get(row: Row, name: str, *kinds: type) -> Any:
    """A field of a row, of one of `kinds` (str where none is given).

    Raises:
        ValueError: it is missing, or something else.
    """
    if name not in row:
        raise ValueError(f"no field {name!r} among {', '.join(row)}")
    value = row[name]
    if type(value) not in (kinds or (str,)):
        wanted = " or ".join(kind.__name__ for kind in kinds or (str,))
        raise ValueError(f"field {name!r} is {type(value).__name__}, not {wanted}")
    return value


def strings(row: Row, name: str) -> tuple[str, ...]:
    """A field of a row that is a list of strings.

    Raises:
        ValueError: it is missing, or something else.
    """
    values = get(row, name, list)
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"field {name!r} holds something else than strings")
    return tuple(values)


def one_of(value: Any, allowed: Sequence[Any]) -> Any:
    """The value.

    Raises:
        ValueError: it is none of those allowed.
    """
    if value not in allowed:
        raise ValueError(f"{value!r} is none of the labels {', '.join(map(str, allowed))}")
    return value


def _rows(source: str | Path, columns: Sequence[str]) -> Rows:
    if str(source).startswith(HUB):
        return _hub(str(source))
    path = Path(source)
    if path.suffix in (".tsv", ".txt"):
        return _tsv(path, columns)
    if path.suffix == ".jsonl":
        return ((place, partial(_json, line)) for place, line in _lines(path))
    if path.suffix == ".csv":
        return _csv(path)
    raise ValueError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; use .tsv, .txt, .jsonl or .csv")


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # the mark some editors put first
            yield f"line {number}", line.removesuffix(b"\n").removesuffix(b"\r")


def _text(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from error


def _tsv(path: Path, columns: Sequence[str]) -> Rows:
    lines = _lines(path)
    if not columns:
        _, header = next(lines, ("", b""))
        columns = header.decode(errors="replace").split("\t")
    return ((place, partial(_fields, columns, line)) for place, line in lines)


def _fields(columns: Sequence[str], line: bytes) -> Row:
    return _named(columns, _text(line).split("\t"))


def _json(line: bytes) -> Row:
    try:
        row = json.loads(_text(line))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from error
    if not isinstance(row, dict):
        raise ValueError(f"is {type(row).__name__}, not an object of named fields")
    return row


def _csv(path: Path) -> Rows:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses texts over 128 KiB
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, [])
            for row in rows:
                yield f"line {rows.line_num}", partial(_named, header, row)
        except (csv.Error, UnicodeDecodeError) as error:  # of which the reader cannot tell where the next row starts
            raise ValueError(f"{path}, line {rows.line_num}: {error}") from error


def _named(columns: Sequence[str], fields: Sequence[str]) -> Row:
    if len(fields) != len(columns):
        raise ValueError(f"has {len(fields)} fields, {len(columns)} were expected: {', '.join(columns)}")
    return dict(zip(columns, fields, strict=True))


def _hub(source: str) -> Rows:
    """Rows of a dataset; class numbers become their names, and -1 becomes None."""
    rows = open_hub(source)
    classes = {name: kind.names for name, kind in rows.features.items() if hasattr(kind, "names")}

    def named(row: Row) -> Row:
        known = {name: row[name] for name in classes}
        return {**row, **{name: classes[name][n] if n is not None and n >= 0 else None for name, n in known.items()}}

    return ((f"row {number}", partial(named, row)) for number, row in enumerate(rows, 1))
