"""Texts from a file, one at a time: txt (one a line), jsonl, csv, parquet."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from modernbert_fast.records import Rows, decode, lines, read_csv, read_jsonl


def read_texts(path: Path, field: str = "text") -> Iterator[str]:
    """Yields the texts of a file in its order; a blank line of a txt file is an empty text, not skipped.

    Args:
        path: the suffix tells the format: .txt, .jsonl, .csv or .parquet.
        field: key or column of the text; txt has none.

    Raises:
        ValueError: unknown suffix, no such field, a damaged file, or a row that is not text, named by its line.
        OSError: when the file cannot be read.
        ImportError: when parquet is asked for and pyarrow is missing.
    """
    reader = READERS.get(path.suffix)
    if reader is None:
        raise ValueError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; use {', '.join(READERS)}")
    yield from reader(path, field)


def content_hash(path: Path) -> str:
    """Digest of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def located(source: object, place: str) -> Iterator[None]:
    """A ValueError from inside says where it happened."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}, {place}: {error}") from error


def text_of(row: Mapping[str, Any], field: str) -> str:
    """A field of a row.

    Raises:
        ValueError: it is missing, or no string.
    """
    if field not in row:
        raise ValueError(f"no field {field!r} among {', '.join(row)}")
    if not isinstance(row[field], str):
        raise ValueError(f"the text is {type(row[field]).__name__}, not a string")
    return row[field]


def _read_txt(path: Path, field: str) -> Iterator[str]:
    for place, line in lines(path):
        with located(path, place):
            text = decode(line)
        yield text


def _read_records(read: Callable[[Path], Rows], path: Path, field: str) -> Iterator[str]:
    for place, row in read(path):
        with located(path, place):
            text = text_of(row(), field)
        yield text


def _read_parquet(path: Path, field: str) -> Iterator[str]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install 'modernbert-fast[encode]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise ValueError(f"{path}: no column {field!r} among {file.schema_arrow.names}")
            batches = file.iter_batches(batch_size=1024, columns=[field])
            for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                with located(path, f"row {number}"):
                    text = text_of(row, field)
                yield text
    except ArrowInvalid as error:
        raise ValueError(f"{path}: not a parquet file that can be read ({error})") from error


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": partial(_read_records, read_jsonl),
    ".csv": partial(_read_records, read_csv),
    ".parquet": _read_parquet,
}
