"""Files that are whole or not there: written beside their place, flushed to disk, renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_file(path: Path, fill: Callable[[BinaryIO], object], scratch: Path | None = None) -> None:
    """Puts a file in its place in one rename; when this returns, a power cut does not undo it.

    Args:
        path: replaced if it is there.
        fill: writes the content.
        scratch: folder for the unfinished file, on the same file system; that of `path` when None.
    """
    partial = (scratch or path.parent) / f"{path.name}.{os.getpid()}.tmp"
    try:
        with open(partial, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path | str, record: Any) -> None:
    """Writes a record as JSON, creating the folder."""
    write_text(Path(path), json.dumps(record, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: file.write(text.encode()))


def sync_tree(folder: Path) -> None:
    """Flushes all files under a folder to disk, and the names of it and its folders: ready to be renamed."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's names to disk; without it a power cut may forget a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
