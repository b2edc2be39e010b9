"""Rows of files in the formats that tasks are published in; none is dropped in silence.

A row that cannot be read raises ValueError with file and line, or goes to `malformed` as that sentence, and the rest
are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from modernbert_fast.records import Row, Rows, decode, lines, named, read_csv, read_jsonl
from modernbert_fast.training.documents import HUB, open_hub

T = TypeVar("T")
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
    return [item for _, item in placed_rows(source, build, columns=columns, malformed=malformed)]


def placed_rows(
    source: str | Path,
    build: Callable[[Row], Sequence[T]],
    *,
    columns: Sequence[str] = (),
    malformed: Malformed = None,
) -> list[tuple[str, T]]:
    """The same as read_rows, each with the place of its row, such as "line 3"."""
    items: list[tuple[str, T]] = []
    for place, read in _rows(source, columns):
        try:
            items += [(place, item) for item in build(read())]
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
        return read_jsonl(path)
    if path.suffix == ".csv":
        return read_csv(path)
    raise ValueError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; use .tsv, .txt, .jsonl or .csv")


def _tsv(path: Path, columns: Sequence[str]) -> Rows:
    found = lines(path)
    if not columns:
        _, header = next(found, ("", b""))
        columns = header.decode(errors="replace").split("\t")
    return ((place, partial(_fields, columns, line)) for place, line in found)


def _fields(columns: Sequence[str], line: bytes) -> Row:
    return named(columns, decode(line).split("\t"))


def _hub(source: str) -> Rows:
    """Rows of a dataset; class numbers become their names, and -1 becomes None."""
    rows = open_hub(source)
    classes = {name: kind.names for name, kind in rows.features.items() if hasattr(kind, "names")}

    def named(row: Row) -> Row:
        known = {name: row[name] for name in classes}
        return {**row, **{name: classes[name][n] if n is not None and n >= 0 else None for name, n in known.items()}}

    return ((f"row {number}", partial(named, row)) for number, row in enumerate(rows, 1))
