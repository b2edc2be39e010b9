"""Texts to vectors by a checkpoint, in two halves that may overlap: tokenisation and the model."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from modernbert_fast import ModernBert, PackedBatch, __version__, library, ops
from modernbert_fast.commands import CommandError
from modernbert_fast.commands.models import DTYPES, folder_of, load_tokenizer
from modernbert_fast.commands.stages import Times, ahead
from modernbert_fast.commands.texts import Shard
from modernbert_fast.packing import token_budget_batches

SETTINGS = ("pooling", "normalize", "max_length", "max_tokens")
AHEAD = 4  # shards that may be tokenised before the model asks for them


class Embedded(NamedTuple):
    """What became of a shard: vectors (n, C) float32, and the tokens that they took."""

    number: int
    vectors: np.ndarray
    tokens: int


class Embedder:
    """A model and its tokenizer, as the options of `encode` ask.

    The vectors of some texts depend on these texts and on `identity()` alone, not on which process computes them.

    Raises:
        CommandError: a checkpoint that cannot be loaded, or a --max-length beyond it.
    """

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.settings = {name: getattr(args, name) for name in SETTINGS}
        self.model = load_encoder(args.model, DTYPES.get(args.dtype)).to(device)
        self.tokenizer = load_tokenizer(args.tokenizer or args.model)
        self.device = device
        limit = self.model.config.max_position_embeddings
        if (args.max_length or limit) > limit:
            raise CommandError(f"--max-length {args.max_length} is beyond the model's {limit} positions")
        self.tokenizer.enable_truncation(args.max_length or limit)

    @property
    def width(self) -> int:
        """C, the length of a vector."""
        return self.model.config.hidden_size

    def stream(self, shards: Iterable[Shard], times: Times) -> Iterator[Embedded]:
        """Embeds shards in their order, and tokenises the next ones meanwhile.

        The stages are reading, tokenisation, model, and waiting: for texts that were not tokenised in time.
        """

        def tokenized() -> Iterator[tuple[int, list[np.ndarray]]]:
            for shard in times.each("reading", shards):
                with times.of("tokenisation"):
                    ids = self.tokenize(shard.texts, shard.first)
                yield shard.number, ids

        for number, ids in times.each("waiting", ahead(tokenized(), AHEAD)):
            with times.of("model"):
                vectors = self.embed(ids)
            yield Embedded(number, vectors, sum(text.size for text in ids))

    def tokenize(self, texts: list[str], first: int) -> list[np.ndarray]:
        """Token ids of each text, int32; `first` is the number of the first text, for the message.

        Raises:
            CommandError: a text without any token.
        """
        ids = [np.array(encoding.ids, np.int32) for encoding in self.tokenizer.encode_batch_fast(texts)]
        for number, text in enumerate(ids, first):
            if not text.size:
                raise CommandError(f"text {number} has no tokens, not even [CLS]")
        return ids

    def embed(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors of tokenized texts, in their order: (len(ids), C) float32."""
        lengths = np.array([text.size for text in ids])
        out = np.empty((len(ids), self.width), dtype=np.float32)
        for batch in token_budget_batches(lengths, self.settings["max_tokens"]):
            bounds = torch.from_numpy(np.concatenate(([0], lengths[batch].cumsum()))).to(self.device)
            tokens = torch.from_numpy(np.concatenate([ids[i] for i in batch])).to(self.device, torch.int64)
            packed = replace(PackedBatch.from_flattened(tokens.numel(), bounds), tokens=tokens)
            with torch.inference_mode():
                hidden = self.model(packed).float()
                rows = ops.pooling(hidden, packed.cu_seqlens, self.settings["pooling"], self.settings["normalize"])
            out[batch] = rows.cpu().numpy()
        return out

    def identity(self) -> dict[str, Any]:
        """All that the vectors depend on but the texts; JSON values."""
        return {
            **self.settings,
            "config": _digest([json.dumps(self.model.config.to_dict()).encode()]),
            "weights": weights_hash(self.model),
            "tokenizer": _digest([self.tokenizer.to_str().encode()]),
            "dtype": str(next(self.model.parameters()).dtype),
            **library.device_facts(self.device),
            "backend": os.environ.get("MODERNBERT_FAST_BACKEND", ""),
            "versions": [__version__, torch.__version__],
        }


def load_encoder(name: str, dtype: torch.dtype | None) -> ModernBert:
    """Our own class, without transformers: no padding on the way in, none on the way out."""
    try:
        return ModernBert.from_pretrained(folder_of(name), dtype).eval()
    except (OSError, ValueError) as error:
        raise CommandError(f"{name}: {error}") from error


def weights_hash(model: torch.nn.Module) -> str:
    """Digest of every parameter and buffer of the state dict, names and bytes."""

    def pieces() -> Iterator[bytes | memoryview]:
        for name, tensor in sorted(model.state_dict().items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

    return _digest(pieces())


def _digest(pieces: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
