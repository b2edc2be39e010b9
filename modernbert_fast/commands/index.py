"""The actions of the index: texts and their ids, attributes and vectors on the way to and from retrieval/."""

import argparse
import itertools
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

from modernbert_fast.commands import CommandError, require
from modernbert_fast.commands.models import DTYPES, choose_device, folder_of
from modernbert_fast.retrieval import Index, IndexWriter
from modernbert_fast.texts import read_texts


def run(args: argparse.Namespace) -> int:
    try:
        return ACTIONS[args.action](args)
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error


def build(args: argparse.Namespace) -> int:
    if (args.index / "manifest.json").exists() and not args.resume and len(Index(args.index)):
        raise CommandError(f"{args.index}: there is an index; use add, or --resume for a build that was stopped")
    encoder = _encoder(args, args.model)
    rows = _rows(args)
    if (first := next(rows, None)) is None:
        raise CommandError(f"{args.input}: no texts")
    dim = encoder.documents([first[1]])[0].shape[1]
    with IndexWriter(args.index, dim, args.store, {"model": args.model}) as writer:
        if writer.manifest.about.get("model") != args.model:
            raise CommandError(f"{args.index} was begun with {writer.manifest.about.get('model')}, not {args.model}")
        there = set(writer) if args.resume else set()
        left = (row for row in itertools.chain([first], rows) if row[0] not in there)
        return _add(writer, encoder, left, args.batch, replace=False)


def add(args: argparse.Namespace) -> int:
    with IndexWriter(args.index) as writer:
        encoder = _encoder(args, args.model or _own_model(writer))
        return _add(writer, encoder, _rows(args), args.batch, args.replace)


def delete(args: argparse.Namespace) -> int:
    with IndexWriter(args.index) as writer:
        missing = sorted(set(args.ids) - set(writer))
        print(f"{args.index}: {writer.delete(args.ids)} deleted, {len(writer)} left")
    if missing:
        print(f"not there: {', '.join(missing)}", file=sys.stderr)
    return 0


def search(args: argparse.Namespace) -> int:
    index = Index(args.index)
    where: dict[str, list[str]] = {}
    for condition in args.where:
        key, sign, value = condition.partition("=")
        if not sign:
            raise CommandError(f"--where {condition}: write KEY=VALUE")
        where.setdefault(key, []).append(value)
    encoder = _encoder(args, args.model or _own_model(index))
    vectors, bounds = encoder.queries(args.queries)
    found = index.search(vectors, bounds, args.k, where)
    for query, hits in zip(args.queries, found, strict=True):
        for hit in hits:
            answer = {"query": query, "id": hit.id, "score": round(hit.score, 6), "attributes": hit.attributes}
            print(json.dumps(answer))
    if where and not any(found):
        print(f"no text has {' and '.join(args.where)}", file=sys.stderr)
    return 0


def verify(args: argparse.Namespace) -> int:
    index = Index(args.index)
    for sentence in (damage := index.verify()):
        print(sentence)
    print(f"{args.index}: {len(index)} texts in {len(index.segments)} segments, {len(damage) or 'nothing'} damaged")
    return 1 if damage else 0


def merge(args: argparse.Namespace) -> int:
    with IndexWriter(args.index) as writer:
        writer.merge()
        print(f"{args.index}: {len(writer)} texts in {len(writer.manifest.segments)} segments")
    return 0


ACTIONS = {"build": build, "add": add, "delete": delete, "search": search, "verify": verify, "merge": merge}


def _rows(args: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Id, text and attributes of each row of the input."""
    keys = [key for key in args.attributes.split(",") if key]
    if args.input.suffix == ".txt" and (args.id or keys):
        raise CommandError(f"{args.input}: a .txt has texts alone, no --id and no --attributes")
    ids = read_texts(args.input, args.id) if args.id else (f"{args.input.name}:{i}" for i in itertools.count(1))
    facts = zip(*(read_texts(args.input, key) for key in keys), strict=True) if keys else itertools.repeat(())
    for name, text, values in zip(ids, read_texts(args.input, args.field), facts, strict=False):
        yield name, text, dict(zip(keys, values, strict=True))


def _add(writer: IndexWriter, encoder: Any, rows: Iterator[Any], batch: int, replace: bool) -> int:
    added, before = 0, len(writer)
    while chunk := list(itertools.islice(rows, batch)):
        ids, texts, attributes = zip(*chunk, strict=True)
        vectors, bounds = encoder.documents(texts)
        try:
            writer.add(ids, vectors, bounds, attributes, replace=replace)
        except ValueError as error:
            done = f" ({added} texts before were added)" if added else ""
            raise CommandError(f"{str(error).replace('replace=True', '--replace')}{done}") from error
        added += len(chunk)
    replaced = added - (len(writer) - before)
    print(f"{writer.folder}: {added} texts added{f', {replaced} replaced' if replaced else ''}, {len(writer)} in all")
    return 0


def _own_model(index: Index | IndexWriter) -> str:
    """What the vectors of an index were made by."""
    model = index.manifest.about.get("model")
    if not isinstance(model, str):
        raise CommandError(f"{index.folder} does not say which model made its vectors: give --model")
    return model


def _encoder(args: argparse.Namespace, model: str) -> Any:
    require("sentence_transformers", "retrieval")
    transformers = require("transformers", "retrieval")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # heads that an encoder leaves out, and advice for stock models
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    from modernbert_fast.retrieval.texts import TextEncoder

    return TextEncoder(folder_of(model), str(choose_device(args)), DTYPES.get(args.dtype))
