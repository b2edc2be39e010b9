"""Texts of a file that a command was given: what is wrong with it is a CommandError."""

from collections.abc import Container, Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

from modernbert_fast import texts
from modernbert_fast.commands import CommandError


def read_texts(path: Path, field: str = "text") -> Iterator[str]:
    """The same as modernbert_fast.texts.read_texts.

    Raises:
        CommandError: in place of its errors.
    """
    try:
        yield from texts.read_texts(path, field)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from error
    except (ImportError, ValueError) as error:
        hint = " (choose it with --field)" if f" {field!r}" in str(error) else ""
        raise CommandError(f"{error}{hint}") from error


class Shard(NamedTuple):
    """Some texts that follow one another, and the number of the first of them, from 1."""

    number: int
    first: int
    texts: list[str]


def read_shards(path: Path, field: str, size: int, rows: int, wanted: Container[int]) -> Iterator[Shard]:
    """The wanted shards of a file of `rows` texts, `size` texts each.

    Raises:
        CommandError: the file has another number of texts by now, or what read_texts finds wrong.
    """
    texts, seen = read_texts(path, field), 0
    for number in count():
        if not (chunk := list(islice(texts, size))):
            break
        if number in wanted:
            yield Shard(number, seen + 1, chunk)
        seen += len(chunk)
    if seen != rows:
        raise CommandError(f"{path} changed while it was read: {rows} texts became {seen}")
