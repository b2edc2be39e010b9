"""Texts of a file to a matrix: shards shared among processes, each whole on disk or done again."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from modernbert_fast.commands import CommandError
from modernbert_fast.commands.embedder import Embedded, Embedder
from modernbert_fast.commands.models import choose_device
from modernbert_fast.commands.progress import Progress
from modernbert_fast.commands.ranks import joined
from modernbert_fast.commands.stages import Times, behind
from modernbert_fast.commands.store import Store
from modernbert_fast.commands.texts import read_shards, read_texts
from modernbert_fast.texts import content_hash

STAGES = ("reading", "tokenisation", "model", "writing")
WRITES = 4  # shards that may wait for the disk

Stream = Callable[[set[int], Times], Iterator[Embedded]]


def run(args: argparse.Namespace) -> int:
    with joined() as ranks:
        if args.ray == "":
            raise CommandError("--ray needs an address: auto, local, or that of a cluster")
        if args.ray is not None and ranks.world > 1:
            raise CommandError("--ray shares the texts itself: start it once, without torchrun")
        # Read once for nothing but this: a bad row is found before hours of work, not after.
        if not (rows := sum(1 for _ in read_texts(args.input, args.field))):
            raise CommandError(f"{args.input}: no texts")
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
