"""Tokens a second, and what share of the machine's arithmetic they are."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any

import torch

from modernbert_fast import heads, timing
from modernbert_fast.config import EncoderConfig


def training_flops(config: EncoderConfig, lengths: torch.Tensor, labelled: int) -> float:
    """Multiplications and additions of forward and backward, the latter counted as twice the former.

    Args:
        config: of the encoder.
        lengths: (B,) tokens of each text.
        labelled: rows that meet the head and the vocabulary.
    """
    C, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    lengths = lengths.double()
    tokens = float(lengths.sum())
    pairs = 0.0
    for kind in config.layer_types:
        window = config.window(kind)
        seen = lengths if window < 0 else lengths.clamp(max=2 * window + 1)
        pairs += float((lengths * seen).sum())
    products = config.num_hidden_layers * (4 * C * C + 3 * C * F) * tokens + 2 * C * pairs
    return 6 * (products + labelled * (C * C + C * V))


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measured flop/s of a matrix product on `device`, large enough to take 10 ms: the limit that a share is of."""
    size, rate = 256, 0.0
    while True:
        a = torch.randn(size, size, device=device).to(dtype)
        b = a.t().contiguous()
        a @ b
        taken = min(timing.seconds(functools.partial(torch.mm, a, b)) for _ in range(3))
        rate = max(rate, 2 * size**3 / taken)
        if taken > 0.01 or size >= 16_384:
            return rate
        size *= 2


class Meter:
    """What this process has trained since the last lap: tokens, flops, seconds without the pauses."""

    def __init__(self, config: EncoderConfig) -> None:
        self._config = config
        self._reset()

    def _reset(self) -> None:
        self._tokens, self._flops, self._since, self._paused = 0, 0.0, time.perf_counter(), 0.0

    def add(self, batch: dict[str, Any]) -> float:
        """Counts a flattened micro-batch; gives its flops."""
        lengths = batch["cu_seq_lens_q"].diff()
        flops = training_flops(self._config, lengths, int((batch["labels"] != heads.IGNORE).sum()))
        self._tokens += batch["input_ids"].numel()
        self._flops += flops
        return flops

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count: evaluation, checkpoints."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def lap(self) -> tuple[int, float, float]:
        """Tokens, flops and seconds since the last lap; a new one begins."""
        lap = self._tokens, self._flops, time.perf_counter() - self._since - self._paused
        self._reset()
        return lap
