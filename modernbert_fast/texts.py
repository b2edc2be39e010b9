"""Texts from a file, one at a time: txt (one a line), jsonl, csv, parquet."""

import csv
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


def read_texts(path: Path, field: str = "text") -> Iterator[str]:
    """Yields the texts of a file in its order; a blank line of a txt file is an empty text, not skipped.

    Args:
        path: the suffix tells the format: .txt, .jsonl, .csv or .parquet.
        field: key or column of the text; txt has none.

    Raises:
        ValueError: unknown suffix, no such field, a damaged file, or a row that is not text, named by its number.
        OSError: when the file cannot be read.
        ImportError: when parquet is asked for and pyarrow is missing.
    """
    reader = READERS.get(path.suffix)
    if reader is None:
        raise ValueError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; use {', '.join(READERS)}")
    try:
        yield from reader(path, field)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} near byte {error.start} of a block)") from error


def content_hash(path: Path) -> str:
    """Digest of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_txt(path: Path, field: str) -> Iterator[str]:
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n").removesuffix("\r")


def _read_jsonl(path: Path, field: str) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from error
            if not isinstance(row, dict) or field not in row:
                raise ValueError(f"{path}, line {number}: no field {field!r}")
            yield check_text(row[field], path, number)


def _read_csv(path: Path, field: str) -> Iterator[str]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses texts over 128 KiB
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if field not in (rows.fieldnames or ()):
            raise ValueError(f"{path}: no column {field!r} among {rows.fieldnames}")
        try:
            for number, row in enumerate(rows, 1):
                yield check_text(row[field], path, number)
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.line_num + 1}: {error}") from error


def _read_parquet(path: Path, field: str) -> Iterator[str]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install 'modernbert-fast[encode]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise ValueError(f"{path}: no column {field!r} among {file.schema_arrow.names}")
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=[field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield check_text(value, path, number)
    except ArrowInvalid as error:
        raise ValueError(f"{path}: not a parquet file that can be read ({error})") from error


def check_text(value: object, source: object, number: int) -> str:
    """The value if it is a string; else a ValueError that names its row."""
    if not isinstance(value, str):
        raise ValueError(f"{source}, row {number}: the text is {type(value).__name__}, not a string")
    return value


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
