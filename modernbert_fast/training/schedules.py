"""How many tokens a batch has, and how many steps some tokens take; learning rates are transformers' schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BatchSchedule:
    """Tokens of the batch of a step: constant, or grown from a smaller one with as many steps at each size.

    The sizes are `start`, 2 * `start`, ... up to `tokens`, as in the paper's 768 to 4,608 texts.

    Attributes:
        tokens: of a full batch, over all processes and micro-batches.
        start: of the first batch; equal to `tokens` without warm-up.
        warmup_tokens: how many tokens pass before the batch is full.

    Raises:
        ValueError: a size is below 1, `start` does not divide `tokens`, or `start` is smaller and nothing is warm-up.
    """

    tokens: int
    start: int
    warmup_tokens: int = 0

    def __post_init__(self) -> None:
        if self.start < 1 or self.tokens % self.start:
            raise ValueError(f"a batch of {self.tokens} tokens is no multiple of the first one's {self.start}")
        if self.start < self.tokens and self.warmup_steps < 1:
            raise ValueError(f"a batch cannot grow from {self.start} to {self.tokens} in {self.warmup_tokens} tokens")

    @property
    def sizes(self) -> int:
        """How many sizes there are."""
        return self.tokens // self.start

    @property
    def warmup_steps(self) -> int:
        """Steps before the batch is full, a multiple of the number of smaller sizes."""
        smaller = self.sizes - 1
        # `each` steps at start * 1, 2, ... smaller.
        each = self.warmup_tokens // (self.start * smaller * (smaller + 1) // 2) if smaller else 0
        return each * smaller

    def at(self, step: int) -> int:
        """Tokens of the batch of a step, the first being 0."""
        if step >= self.warmup_steps:
            return self.tokens
        return self.start * (1 + step * (self.sizes - 1) // self.warmup_steps)

    def steps(self, tokens: int) -> int:
        """The number of steps, from the first on, that take at least `tokens` tokens."""
        step = 0
        while step < self.warmup_steps and tokens > 0:
            tokens -= self.at(step)
            step += 1
        return step + math.ceil(max(tokens, 0) / self.tokens)


@dataclass(frozen=True)
class MicroBatchTokens:
    """Tokens of a micro-batch by its number, for a sampler: the batch of its step, shared out evenly.

    Attributes:
        schedule: of whole batches.
        parts: micro-batches of a step, over all processes.
        shortest: a micro-batch is never smaller; the longest text has to fit.
    """

    schedule: BatchSchedule
    parts: int
    shortest: int

    def __call__(self, number: int) -> int:
        return max(self.schedule.at(number // self.parts) // self.parts, self.shortest)


def learning_rate_arguments(steps: int, warmup_steps: int, decay_steps: int, floor: float = 0.0) -> dict[str, Any]:
    """Arguments of transformers' TrainingArguments for warm-up, a constant rate, and decay by 1 - sqrt.

    Args:
        steps: of the whole phase.
        warmup_steps: from 0 to the full rate, linearly.
        decay_steps: at the end, from the full rate to `floor` times it.
        floor: share of the full rate.

    Raises:
        ValueError: warm-up and decay do not fit into `steps`.
    """
    if warmup_steps + decay_steps > steps:
        raise ValueError(f"{warmup_steps} steps of warm-up and {decay_steps} of decay are more than {steps} in all")
    return {
        "max_steps": steps,
        "lr_scheduler_type": "warmup_stable_decay",
        "warmup_steps": warmup_steps,
        "lr_scheduler_kwargs": {"num_decay_steps": decay_steps, "decay_type": "1-sqrt", "min_lr_ratio": floor},
    }
