"""Embeds every text of a file: packed batches, bounded memory, no row lost or doubled after a kill."""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modernbert_fast import ModernBert, PackedBatch, __version__, library, ops
from modernbert_fast.commands import CommandError
from modernbert_fast.commands.models import (
    DTYPES,
    add_device_arguments,
    choose_device,
    folder_of,
    load_tokenizer,
    positive,
)
from modernbert_fast.commands.progress import Progress
from modernbert_fast.commands.store import WRITERS, Store
from modernbert_fast.commands.texts import read_texts
from modernbert_fast.packing import token_budget_batches
from modernbert_fast.texts import READERS, content_hash

help = "embed the texts of a file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help=f"texts: {', '.join(READERS)}; a .txt holds one text a line")
    parser.add_argument("output", type=Path, help=f"float32 matrix, a row a text, in input order: {', '.join(WRITERS)}")
    parser.add_argument("--model", required=True, help="checkpoint folder or Hugging Face name (a name may download)")
    parser.add_argument("--tokenizer", help="folder or name, where it is not the model's own")
    parser.add_argument("--field", default="text", help="key or column of the text (default: %(default)s)")
    parser.add_argument("--pooling", choices=("cls", "mean"), default="cls", help="default: %(default)s")
    parser.add_argument("--normalize", action="store_true", help="scale every row to length 1")
    parser.add_argument(
        "--max-length", type=positive, help="cut texts to this many tokens (default: the model's limit)"
    )
    parser.add_argument("--max-tokens", type=positive, default=16384, help="tokens per batch (default: %(default)s)")
    parser.add_argument("--shard", type=positive, default=256, help="texts per restart point (default: %(default)s)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue a run that was stopped; fine if there is none")
    again.add_argument("--overwrite", action="store_true", help="drop what is there and start anew")
    parser.add_argument("--dtype", choices=DTYPES, help="of weights and activations (default: as stored)")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    device = choose_device(args)
    # Read once for nothing but this: a bad row is found before hours of work, not after.
    rows = sum(1 for _ in read_texts(args.input, args.field))
    tokenizer = load_tokenizer(args.tokenizer or args.model)
    model = load_encoder(args.model, DTYPES.get(args.dtype)).to(device)
    limit = model.config.max_position_embeddings
    if (args.max_length or limit) > limit:
        raise CommandError(f"--max-length {args.max_length} is beyond the model's {limit} positions")
    tokenizer.enable_truncation(args.max_length or limit)

    store = Store(args.output, fingerprint(args, model, tokenizer, device, rows))
    if store.open(resume=args.resume, overwrite=args.overwrite):
        print(f"{args.output} is complete already: {rows} rows")
        return 0
    shards = -(-rows // args.shard)
    start, seen, encoded = time.perf_counter(), 0, 0
    with Progress(rows) as progress:
        for shard, texts in enumerate(_chunks(read_texts(args.input, args.field), args.shard)):
            seen += len(texts)
            if not store.has(shard):
                ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
                if [] in ids:
                    raise CommandError(f"text {seen - len(texts) + ids.index([]) + 1} has no tokens, not even [CLS]")
                store.write(shard, embed(model, ids, args))
                encoded += sum(map(len, ids))
            progress.update(len(texts))
    if seen != rows:
        raise CommandError(f"{args.input} changed while it was read: {rows} texts became {seen}")
    store.finish(shards, (rows, model.config.hidden_size), np.dtype(np.float32))
    elapsed = time.perf_counter() - start
    print(f"{args.output}: {rows} rows of {model.config.hidden_size}; {encoded} tokens in {elapsed:.1f} s now")
    return 0


def embed(model: ModernBert, ids: list[list[int]], args: argparse.Namespace) -> np.ndarray:
    """Embeddings of some tokenized texts, in their order: (len(ids), C) float32."""
    lengths = [len(text) for text in ids]
    out = np.empty((len(ids), model.config.hidden_size), dtype=np.float32)
    for batch in token_budget_batches(lengths, args.max_tokens):
        packed = PackedBatch.from_lists([ids[i] for i in batch], device=model.final_norm.weight.device)
        with torch.inference_mode():
            rows = ops.pooling(model(packed).float(), packed.cu_seqlens, args.pooling, args.normalize)
        out[batch] = rows.cpu().numpy()
    return out


def load_encoder(name: str, dtype: torch.dtype | None) -> ModernBert:
    """Our own class, without transformers: no padding on the way in, none on the way out."""
    try:
        return ModernBert.from_pretrained(folder_of(name), dtype).eval()
    except (OSError, ValueError) as error:
        raise CommandError(f"{name}: {error}") from error


def fingerprint(
    args: argparse.Namespace, model: ModernBert, tokenizer: Any, device: torch.device, rows: int
) -> dict[str, Any]:
    """All that the rows depend on; a resumed run must agree with it, or its rows would not fit the others."""
    return {
        "input": content_hash(args.input),
        "rows": rows,
        **{
            name: getattr(args, name) for name in ("field", "pooling", "normalize", "max_length", "max_tokens", "shard")
        },
        "config": _digest([json.dumps(model.config.to_dict()).encode()]),
        "weights": weights_hash(model),
        "tokenizer": _digest([tokenizer.to_str().encode()]),
        "dtype": str(next(model.parameters()).dtype),
        "device": device.type,
        "isa": library.isa(),
        "backend": os.environ.get("MODERNBERT_FAST_BACKEND", ""),
        "versions": [__version__, torch.__version__],
    }


def weights_hash(model: torch.nn.Module) -> str:
    """Digest of every parameter and buffer of the state dict, names and bytes."""

    def pieces() -> Iterator[bytes | memoryview]:
        for name, tensor in sorted(model.state_dict().items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

    return _digest(pieces())


def _chunks(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    while chunk := list(islice(texts, size)):
        yield chunk


def _digest(pieces: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
