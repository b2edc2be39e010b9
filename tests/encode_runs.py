"""Texts to embed and runs of modernbert-fast encode, shared by tests."""

import csv
import json
import random
from pathlib import Path

import pytest

from modernbert_fast.cli import main
from modernbert_fast.commands.corpus import manual_texts


def short_texts(count: int) -> list[str]:
    words = " ".join(manual_texts()).split()
    rng = random.Random(0)
    return [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(count)]


def write_texts(path: Path, texts: list[str]) -> Path:
    if path.suffix == ".txt":
        path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
    else:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"text": texts}), path)
    return path


def encode(*args: object) -> int:
    return main(["encode", "--threads", "1", *map(str, args)])


def finished(parts: Path) -> list[Path]:
    return list(parts.glob("????????.npy"))
