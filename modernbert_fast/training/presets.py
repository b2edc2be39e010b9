"""Recipes of pre-training: a model's sizes and its phases, the paper's for base and large, or one's own from JSON."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modernbert_fast.config import EncoderConfig
from modernbert_fast.training.schedules import BatchSchedule
from modernbert_fast.untrusted import read_json


@dataclass(frozen=True)
class Phase:
    """One stretch of training at one length; batches count texts of full length, as the paper does.

    Attributes:
        name: of its folder: letters, digits, _ and -.
        tokens: to train on.
        max_length: longest text, special tokens included.
        learning_rate: the highest.
        batch: texts of full length in a step, over all processes.
        micro_batch: of them in one forward of one process.
        first_batch: of them in the first step; `batch` when None.
        batch_warmup_tokens: tokens before the batch is full.
        warmup_tokens: tokens of linear warm-up of the learning rate.
        decay_tokens: tokens of 1 - sqrt decay at the end.
        weight_decay: fully decoupled.
        rope_theta: base of the rotary frequencies of global layers.
        masked: share of tokens to predict.

    Raises:
        ValueError: a value makes no sense; the message names it.
    """

    name: str
    tokens: int
    max_length: int
    learning_rate: float
    batch: int
    micro_batch: int
    first_batch: int | None = None
    batch_warmup_tokens: int = 0
    warmup_tokens: int = 0
    decay_tokens: int = 0
    weight_decay: float = 1e-5
    rope_theta: float = 10_000.0
    masked: float = 0.3

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch("[A-Za-z0-9_-]+", self.name):
            raise ValueError(f"phase {self.name!r}: a name has letters, digits, _ and - alone, for it names a folder")
        for key in ("tokens", "max_length", "batch", "micro_batch"):
            if not isinstance(getattr(self, key), int) or getattr(self, key) < 1:
                raise ValueError(f"phase {self.name!r}: {key} must be a positive integer, got {getattr(self, key)!r}")
        for key in ("learning_rate", "rope_theta"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"phase {self.name!r}: {key} must be positive, got {getattr(self, key)!r}")
        for key in ("batch_warmup_tokens", "warmup_tokens", "decay_tokens", "weight_decay"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"phase {self.name!r}: {key} must not be negative, got {getattr(self, key)!r}")
        if not 0 < self.masked < 1:
            raise ValueError(f"phase {self.name!r}: masked must be between 0 and 1, got {self.masked!r}")
        if self.max_length < 3:
            raise ValueError(f"phase {self.name!r}: max_length {self.max_length} has no room beside [CLS] and [SEP]")
        if self.warmup_tokens + self.decay_tokens > self.tokens:
            raise ValueError(f"phase {self.name!r}: warm-up and decay of the learning rate take more than all tokens")
        _ = self.batches  # refuses sizes that do not fit together

    @property
    def batches(self) -> BatchSchedule:
        """Tokens of the batch of each step."""
        first = self.batch if self.first_batch is None else self.first_batch
        return BatchSchedule(self.batch * self.max_length, first * self.max_length, self.batch_warmup_tokens)

    def accumulation(self, processes: int) -> int:
        """Micro-batches of one process in a step.

        Raises:
            ValueError: the batch does not share out evenly.
        """
        if self.batch % processes:
            raise ValueError(
                f"phase {self.name!r}: a batch of {self.batch} texts does not share out to {processes} processes"
            )
        return -(-self.batch // (self.micro_batch * processes))


@dataclass(frozen=True)
class Recipe:
    """A model's sizes and the phases that train it.

    Attributes:
        name: what the table says.
        phases: in order; each starts from the weights of the one before.
        model: keys of a ModernBERT config that differ from base.
    """

    name: str
    phases: tuple[Phase, ...]
    model: Mapping[str, Any] = field(default_factory=dict)


def from_json(path: Path) -> Recipe:
    """A recipe from a JSON object {"name", "model": {...}, "phases": [{...}]} with the fields of Recipe and Phase.

    Raises:
        OSError: the file cannot be read.
        ValueError: a key is unknown, missing or has a bad value; the message names file and key.
    """
    content = read_json(path)
    try:
        if unknown := set(content) - {"name", "model", "phases"}:
            raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
        phases, model = content.get("phases"), content.get("model", {})
        if not isinstance(phases, list) or not phases or not isinstance(model, dict):
            raise ValueError("'phases' must be a list of at least one object, 'model' an object")
        EncoderConfig.from_dict(model)
        return Recipe(str(content.get("name", path.stem)), tuple(_phase(entry) for entry in phases), model)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _phase(entry: Any) -> Phase:
    known = {field.name for field in dataclasses.fields(Phase)}
    if not isinstance(entry, dict):
        raise ValueError(f"a phase is an object, got {entry!r}")
    if unknown := set(entry) - known:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r} of a phase; known: {', '.join(sorted(known))}")
    return Phase(**entry)


def table(recipe: Recipe) -> str:
    """The phases side by side, as the paper's table has them."""
    rows: list[tuple[str, Callable[[Phase], str]]] = [
        ("tokens", lambda p: _amount(p.tokens)),
        ("length", lambda p: f"{p.max_length:,}"),
        ("rope base, global", lambda p: f"{p.rope_theta:,.0f}"),
        ("learning rate", lambda p: f"{p.learning_rate:g}"),
        ("warm-up", lambda p: _amount(p.warmup_tokens)),
        ("decay, 1 - sqrt", lambda p: _amount(p.decay_tokens)),
        ("batch, texts", lambda p: f"{p.batch:,}"),
        ("batch, tokens", lambda p: f"{p.batches.tokens:,}"),
        ("batch warm-up", _batch_warmup),
        ("micro-batch, texts", lambda p: f"{p.micro_batch:,}"),
        ("steps", lambda p: f"{p.batches.steps(p.tokens):,}"),
        ("masked", lambda p: f"{p.masked:.0%}"),
        ("weight decay", lambda p: f"{p.weight_decay:g}"),
        ("optimizer", lambda p: "StableAdamW"),
        ("betas, eps", lambda p: ".90 .98, 1e-6"),
    ]  # fmt: skip
    cells = [[recipe.name, *(phase.name for phase in recipe.phases)]]
    cells += [[label, *(of(phase) for phase in recipe.phases)] for label, of in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        row[0].ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _batch_warmup(phase: Phase) -> str:
    return f"from {phase.first_batch:,} in {_amount(phase.batch_warmup_tokens)}" if phase.first_batch else "-"


def _amount(tokens: int) -> str:
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if tokens >= size:
            return f"{tokens / size:g} {unit}"
    return f"{tokens:,}" if tokens else "-"


def _extension(learning_rate: float, batch: int, micro_batch: int, weight_decay: float) -> tuple[Phase, Phase]:
    """The two phases at 8,192 tokens: a constant rate, then the decay."""
    constant = Phase(
        name="extension",
        tokens=250 * 10**9,
        max_length=8192,
        learning_rate=learning_rate,
        batch=batch,
        micro_batch=micro_batch,
        weight_decay=weight_decay,
        rope_theta=160_000.0,
    )
    return constant, dataclasses.replace(constant, name="decay", tokens=50 * 10**9, decay_tokens=50 * 10**9)


_BASE = Phase(
    name="pretraining",
    tokens=1719 * 10**9,
    max_length=1024,
    learning_rate=8e-4,
    batch=4608,
    micro_batch=96,
    first_batch=768,
    batch_warmup_tokens=50 * 10**9,
    warmup_tokens=3 * 10**9,
    weight_decay=1e-5,
)
_LARGE = dataclasses.replace(
    _BASE,
    tokens=900 * 10**9,
    learning_rate=5e-4,
    batch=4928,
    micro_batch=56,
    first_batch=448,
    batch_warmup_tokens=10 * 10**9,
    warmup_tokens=2 * 10**9,
)
_ROLLBACK = dataclasses.replace(
    _LARGE,
    name="rollback",
    tokens=800 * 10**9,
    learning_rate=5e-5,
    first_batch=None,
    batch_warmup_tokens=0,
    warmup_tokens=0,
    weight_decay=1e-6,
)
PRESETS: dict[str, Recipe] = {
    "base": Recipe("ModernBERT-base", (_BASE, *_extension(3e-4, 72, 12, 1e-5))),
    "large": Recipe(
        "ModernBERT-large",
        (_LARGE, _ROLLBACK, *_extension(5e-5, 77, 7, 1e-6)),
        EncoderConfig.preset("large").to_dict(),
    ),
}
