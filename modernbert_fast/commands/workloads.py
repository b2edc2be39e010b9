"""Batches to measure: named shapes, or the lengths of the user's own texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modernbert_fast.commands import CommandError
from modernbert_fast.commands.texts import read_texts

NAMED = ("1x64", "8x512", "var", "1x8192")


@dataclass(frozen=True)
class Workload:
    """Texts of given lengths in tokens, as one batch."""

    name: str
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def padding(self) -> float:
        """Share of the padded grid that is padding."""
        return 1 - self.tokens / (len(self.lengths) * max(self.lengths))

    def ids(self, vocab_size: int) -> list[list[int]]:
        """Random tokens, the same at every call."""
        rng = np.random.default_rng(0)
        return [rng.integers(vocab_size, size=length).tolist() for length in self.lengths]


def parse(name: str) -> Workload:
    """`var`, or `BxS` for B full texts of S tokens.

    Raises:
        CommandError: neither.
    """
    if name == "var":
        return Workload(name, log_normal())
    try:
        texts, length = map(int, name.split("x"))
    except ValueError as error:
        raise CommandError(f"workload {name!r} is neither var nor BxS, such as 8x512") from error
    if texts < 1 or length < 1:
        raise CommandError(f"workload {name!r} is empty")
    return Workload(name, (length,) * texts)


def log_normal() -> tuple[int, ...]:
    """32 log-normal lengths of 16..512 tokens: 3,866 in all, 69 % of their padded grid is padding."""
    drawn = np.random.default_rng(33).lognormal(mean=4.6, sigma=0.7, size=32)
    return tuple(int(length) for length in np.clip(drawn, 16, 512))


def from_texts(path: Path, field: str, tokenizer: Any, batch: int, limit: int) -> list[Workload]:
    """The user's own lengths: his texts in their order, `batch` at a time, cut to `limit` tokens."""
    texts = list(read_texts(path, field))
    if not texts:
        raise CommandError(f"{path}: no texts")
    tokenizer.enable_truncation(limit)
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    return [
        Workload(f"{path.name}[{start}:{start + len(part)}]", tuple(part))
        for start in range(0, len(lengths), batch)
        if (part := lengths[start : start + batch])
    ]
