"""Embeds every text of a file: packed batches, bounded memory, no row lost or doubled after a kill.

Under torchrun the processes share the texts; with --ray the actors of a Ray cluster do. The vectors are the same.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modernbert_fast.commands import CommandError
from modernbert_fast.commands.embedder import Embedded, Embedder
from modernbert_fast.commands.models import DTYPES, add_device_arguments, choose_device, gpus, positive
from modernbert_fast.commands.progress import Progress
from modernbert_fast.commands.ranks import joined
from modernbert_fast.commands.stages import Times, behind
from modernbert_fast.commands.store import WRITERS, Store
from modernbert_fast.commands.texts import read_shards, read_texts
from modernbert_fast.texts import READERS, content_hash

help = "embed the texts of a file"
STAGES = ("reading", "tokenisation", "model", "writing")
WRITES = 4  # shards that may wait for the disk

Stream = Callable[[set[int], Times], Iterator[Embedded]]


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
    parser.add_argument("--ray", metavar="ADDRESS", help="embed on a Ray cluster: its address, auto, or local")
    parser.add_argument("--actors", type=positive, default=2, help="models on the cluster (default: %(default)s)")
    parser.add_argument("--gpus", type=gpus, default=0, help="GPUs of each (default: %(default)s, they run on the CPU)")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    with joined() as ranks:
        if args.ray == "":
            raise CommandError("--ray needs an address: auto, local, or that of a cluster")
        if args.ray is not None and ranks.world > 1:
            raise CommandError("--ray shares the texts itself: start it once, without torchrun")
        # Read once for nothing but this: a bad row is found before hours of work, not after.
        rows = sum(1 for _ in read_texts(args.input, args.field))
        identity, width, stream = load(args, rows)
        source = {"input": content_hash(args.input), "rows": rows, "field": args.field, "shard": args.shard}
        store = Store(args.output, {**source, **identity})
        # The first process looks at the disk for all: on shared storage each may see another state of it.
        complete = ranks.first and store.open(resume=args.resume, overwrite=args.overwrite)
        [complete] = ranks.from_first([complete])
        if not ranks.first:
            store.join()
        if complete:
            if ranks.first:
                print(f"{args.output} is complete already: {rows} rows")
            return 0
        shards = -(-rows // args.shard)
        there = ranks.from_first([ranks.first and store.has(shard) for shard in range(shards)])
        missing = [shard for shard in range(shards) if not there[shard]]
        start, times = time.perf_counter(), Times()
        wanted = set(missing[ranks.rank :: ranks.world])
        tokens = ranks.sum(embed(args, wanted, rows, stream(wanted, times), store, times))
        if ranks.first:
            with times.of("writing"):
                store.finish(shards, (rows, width), np.dtype(np.float32))
            elapsed = time.perf_counter() - start
            print(f"{args.output}: {rows} rows of {width}; {tokens} tokens in {elapsed:.1f} s now")
            if tokens:
                print(shares(times.seconds, elapsed, 1 if args.ray is None else args.actors))
    return 0


def load(args: argparse.Namespace, rows: int) -> tuple[dict[str, Any], int, Stream]:
    """The model, here or on a cluster: its identity, the width of its vectors, and what embeds wanted shards."""
    if args.ray is not None:
        from modernbert_fast.commands import cluster

        identity, width = cluster.survey(args)
        return identity, width, lambda wanted, times: cluster.stream(args, wanted, rows, identity, times)
    embedder = Embedder(args, choose_device(args))

    def stream(wanted: set[int], times: Times) -> Iterator[Embedded]:
        return embedder.stream(read_shards(args.input, args.field, args.shard, rows, wanted), times)

    return embedder.identity(), embedder.width, stream


def embed(
    args: argparse.Namespace,
    wanted: set[int],
    rows: int,
    embedded: Iterator[Embedded],
    store: Store,
    times: Times,
) -> int:
    """Puts the wanted shards into the store as they come, and returns how many tokens they have."""

    def write(shard: Embedded) -> None:
        with times.of("writing"):
            store.write(shard.number, shard.vectors)

    tokens = 0
    with Progress(sum(min(args.shard, rows - shard * args.shard) for shard in wanted)) as progress:
        for shard in behind(write, embedded, WRITES):
            tokens += shard.tokens
            progress.update(len(shard.vectors))
    return tokens


def shares(seconds: Mapping[str, float], elapsed: float, models: int = 1) -> str:
    """What each stage took of the time, and how much of tokenisation the model hid; of `models` models together."""
    tokenised = seconds["reading"] + seconds["tokenisation"]
    hidden = max(0.0, 1 - seconds["waiting"] / tokenised)
    share = {stage: seconds[stage] / elapsed / (1 if stage == "writing" else models) for stage in STAGES}
    words = ", ".join(f"{stage} {share[stage]:.1%}" for stage in STAGES)
    return f"share of the time: {words}; {hidden:.1%} of reading and tokenisation was hidden behind the model"
