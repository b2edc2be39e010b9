"""Texts of a file that a command was given: what is wrong with it is a CommandError."""

from collections.abc import Iterator
from pathlib import Path

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
