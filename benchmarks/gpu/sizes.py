"""What the runs on a GPU ask for, and the same in miniature for a dry run on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from modernbert_fast.config import EncoderConfig


@dataclass(frozen=True, eq=False)
class Sizes:
    """Everything that differs between a run and its rehearsal.

    Attributes:
        dry: whether this is the rehearsal.
        device, dtype: of models and ops.
        models: configurations by name.
        tokens: of a batch.
        lengths: of texts, in batches of one length; mixed ones have texts of up to the first.
        op_lengths: the same for attention alone.
        other_tokens: of the ops that weigh little.
        latency: lengths of single texts.
        train_tokens: of a training step.
        beyond: more elements than a 32-bit index reaches.
        replays: other batches that a CUDA graph serves.
        compiler: backend of torch.compile.
        rounds: samples of an op; models take fewer, latencies more.
        warmup: runs before them.
    """

    dry: bool
    device: torch.device
    dtype: torch.dtype
    models: dict[str, EncoderConfig]
    tokens: int
    lengths: tuple[int, ...]
    op_lengths: tuple[int, ...]
    other_tokens: int
    latency: tuple[int, ...]
    train_tokens: int
    beyond: int
    replays: int
    compiler: str
    rounds: int
    warmup: int

    def texts(self, length: int, tokens: int | None = None) -> tuple[int, ...]:
        """Lengths of as many full texts as make a batch."""
        return (length,) * max((tokens or self.tokens) // length, 1)

    @property
    def config(self) -> EncoderConfig:
        """The smallest model."""
        return next(iter(self.models.values()))

    def mixed(self) -> tuple[int, ...]:
        """Normal around half of the shortest kind, as in the paper of ModernBERT."""
        longest = self.lengths[0]
        drawn = np.random.default_rng(0).normal(longest / 2, longest / 4, size=16 * self.tokens // longest)
        lengths = np.clip(drawn, longest // 16, longest).astype(int)
        return tuple(int(n) for n in lengths[: int(np.searchsorted(lengths.cumsum(), self.tokens))])


_TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "max_position_embeddings": 256,
    "local_attention": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}


def real() -> Sizes:
    """ModernBERT base and large, 64k tokens, bfloat16."""
    return Sizes(
        dry=False,
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
        models={name: EncoderConfig.preset(name) for name in ("base", "large")},
        tokens=65536,
        lengths=(512, 8192),
        op_lengths=(512, 2048, 8192),
        other_tokens=16384,
        latency=(64, 512),
        train_tokens=16384,
        beyond=2**31,
        replays=100,
        compiler="inductor",
        rounds=9,
        warmup=3,
    )


def dry() -> Sizes:
    """A model of three layers, 48 tokens, float32, which Triton's interpreter takes."""
    return Sizes(
        dry=True,
        device=torch.device("cpu"),
        dtype=torch.float32,
        models={"tiny": EncoderConfig.from_dict(_TINY)},
        tokens=48,
        lengths=(16, 48),
        op_lengths=(16,),
        other_tokens=32,
        latency=(16,),
        train_tokens=32,
        beyond=2**14,
        replays=3,
        compiler="aot_eager",
        rounds=1,
        warmup=1,
    )


def choose(is_dry: bool) -> Sizes:
    return dry() if is_dry else real()
