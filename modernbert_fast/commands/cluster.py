"""encode on a Ray cluster: this process reads and writes, the actors of Ray Data tokenise and embed."""

from __future__ import annotations

import argparse
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from modernbert_fast.commands import CommandError, require
from modernbert_fast.commands.embedder import Embedded, Embedder
from modernbert_fast.commands.models import choose_device
from modernbert_fast.commands.stages import Times
from modernbert_fast.commands.texts import Shard, read_shards

CALL = 8  # shards that an actor is given at once: inside, all but the first are tokenised behind the model

Columns = dict[str, Any]


def survey(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Connects, and asks where an actor could run for the identity of the model there and the width of its vectors.

    The machine of this process may have no such device.

    Raises:
        CommandError: no such cluster, or no model can be loaded there.
    """
    ray = require("ray", "ray")
    _connect(ray, args)
    # One call a worker: its model must not stay in the memory that an actor needs.
    task = ray.remote(num_cpus=args.threads or 1, num_gpus=args.gpus, max_calls=1)(_survey)
    with _refusals(ray, args):
        return ray.get(task.remote(args))


def stream(
    args: argparse.Namespace, wanted: set[int], rows: int, identity: dict[str, Any], times: Times
) -> Iterator[Embedded]:
    """Embeds the wanted shards in any order; what an actor that died had in hand is done again.

    Args:
        identity: what `survey` found; an actor that would make other vectors refuses to work.

    Raises:
        CommandError: an actor cannot do the work.
    """
    ray, data = require("ray", "ray"), require("ray.data", "ray")
    context = data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # a block for each shard, or the first would wait for 128 MiB of texts
    context.enable_progress_bars = False
    with data.DataContext.current(context):
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # the file may be on no other machine
        # Without CPUs of its own, as the actors may hold all that there are.
        shards = data.from_items([0]).map_batches(
            _read, fn_args=(args, rows, wanted), batch_size=None, num_cpus=0, label_selector=here
        )
        embedded = shards.map_batches(
            _Actor,
            fn_constructor_args=(args, identity),
            batch_size=CALL,
            compute=data.ActorPoolStrategy(size=args.actors),
            num_cpus=args.threads or 1,
            num_gpus=args.gpus,
        )
        with _refusals(ray, args):
            for row in embedded.iter_rows():
                for stage, seconds in zip(row["stages"], row["seconds"], strict=True):
                    times.seconds[stage] += seconds
                vectors = np.frombuffer(row["vectors"], np.float32).reshape(row["texts"], -1)
                yield Embedded(row["number"], vectors, row["tokens"])


@contextmanager
def _refusals(ray: Any, args: argparse.Namespace) -> Iterator[None]:
    """The last line of what Ray raises, as a CommandError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        raise CommandError(f"--ray {args.ray}: {str(error).strip().splitlines()[-1]}") from error


def _connect(ray: Any, args: argparse.Namespace) -> None:
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    _reach(args.ray)
    own = {"include_dashboard": False} if args.ray == "local" else {}
    try:
        ray.init(args.ray, log_to_driver=False, logging_level="warning", **own)
    except (ConnectionError, ValueError) as error:
        raise CommandError(f"--ray {args.ray}: {error}") from error


def _survey(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    embedder = Embedder(args, choose_device(args))
    return embedder.identity(), embedder.width


def _reach(address: str) -> None:
    """Ray tries for minutes where nobody listens; one attempt at a HOST:PORT says so at once."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdigit()) or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise CommandError(f"--ray {address}: {error}") from error


def _read(batch: Columns, args: argparse.Namespace, rows: int, wanted: set[int]) -> Iterator[Columns]:
    """One shard after another, as Ray takes them."""
    for shard in read_shards(args.input, args.field, args.shard, rows, wanted):
        yield {"number": [shard.number], "first": [shard.first], "texts": [shard.texts]}


class _Actor:
    """An Embedder on a machine of the cluster."""

    def __init__(self, args: argparse.Namespace, identity: dict[str, Any]) -> None:
        self.embedder = Embedder(args, choose_device(args))
        own = self.embedder.identity()
        if differing := [key for key in identity if own[key] != identity[key]]:
            facts = "; ".join(f"{key}: {own[key]}, not {identity[key]}" for key in differing)
            raise CommandError(f"an actor would make other vectors than another ({facts})")

    def __call__(self, batch: Columns) -> Columns:
        shards: Iterable[Shard] = map(
            Shard, batch["number"].tolist(), batch["first"].tolist(), (texts.tolist() for texts in batch["texts"])
        )
        times = Times()
        numbers, vectors, tokens = zip(*self.embedder.stream(shards, times), strict=True)
        count = len(numbers)
        return {
            "number": list(numbers),
            "tokens": list(tokens),
            "texts": [len(rows) for rows in vectors],
            "vectors": [rows.tobytes() for rows in vectors],
            "stages": [list(times.seconds)] * count,
            "seconds": [[spent / count for spent in times.seconds.values()]] * count,
        }
