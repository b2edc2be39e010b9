"""Documents to train on: from a file, a folder, or a named Hugging Face dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modernbert_fast.records import decode
from modernbert_fast.texts import READERS, located, read_texts, text_of

HUB = "hf:"


def read_documents(source: str | os.PathLike[str], field: str = "text") -> Iterator[str]:
    """Yields documents in a fixed order, one at a time.

    Args:
        source: a file (.txt with a document a line, .jsonl, .csv, .parquet); a folder, whose files are read in the
            order of their paths, subfolders and all, a .txt there being one document; or hf:NAME[:CONFIG[:SPLIT]],
            a dataset of the Hugging Face hub or a folder that `datasets` loads, streamed (SPLIT is train by default).
        field: key or column of the text.

    Raises:
        ValueError: a damaged file or a row without text, named with its file and number; a folder without documents.
        OSError: when there is no such file or dataset.
    """
    if str(source).startswith(HUB):
        yield from _read_hub(str(source), field)
        return
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_dir():
        yield from read_texts(path, field)
        return
    files = sorted(file for file in path.rglob("*") if file.suffix in READERS and not _hidden(file.relative_to(path)))
    if not files:
        raise ValueError(f"{path}: no file that ends in {', '.join(READERS)}")
    for file in files:
        if file.suffix == ".txt":
            yield _whole(file)
        else:
            yield from read_texts(file, field)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _whole(file: Path) -> str:
    try:
        return decode(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def open_hub(source: str, **options: Any) -> Any:
    """The dataset that hf:NAME[:CONFIG[:SPLIT]] names, by datasets.load_dataset with these options.

    Raises:
        ValueError: the source is not of that form.
        OSError: there is no such dataset.
    """
    name, config, split, *rest = [*source.removeprefix(HUB).split(":"), "", ""]
    if not name or any(rest):
        raise ValueError(f"{source!r} is not hf:NAME[:CONFIG[:SPLIT]]")
    from datasets import load_dataset

    return load_dataset(name, config or None, split=split or "train", **options)


def _read_hub(source: str, field: str) -> Iterator[str]:
    for number, row in enumerate(open_hub(source, streaming=True), 1):
        with located(source, f"row {number}"):
            text = text_of(row, field)
        yield text
