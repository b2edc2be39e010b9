"""modernbert-fast encode over many real short texts: what each stage takes, what overlapping gains, flat memory.

python benchmarks/run.py data/encode --texts 100000

The texts are sentences of the docstrings of installed packages; the model is the small one of the package.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import numpy as np
from data.workers import Memory, memory

from modernbert_fast import cli, durable, timing
from modernbert_fast.commands import embedder
from modernbert_fast.commands.models import load_tokenizer
from modernbert_fast.tiny import FOLDER

DOCSTRING = re.compile(r'"""(.*?)"""', re.S)
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def sentences(count: int) -> list[str]:
    """Different sentences of 20 to 300 characters.

    Raises:
        SystemExit: when the installed packages have fewer.
    """
    found: dict[str, None] = {}
    for path in sorted(Path(np.__file__).parents[1].rglob("*.py")):
        for docstring in DOCSTRING.findall(path.read_text(errors="ignore")):
            for sentence in SENTENCE.split(" ".join(docstring.split())):
                if 20 <= len(sentence) <= 300 and sentence[0].isupper() and sentence.endswith("."):
                    found[sentence] = None
        if len(found) >= count:
            return list(found)[:count]
    raise SystemExit(f"the docstrings of the installed packages have {len(found)} sentences, not {count}")


def run(texts: list[str], threads: int, overlapped: bool = True) -> dict[str, Any]:
    """One run of the command: seconds, its shares in percent, and the private memory of this process meanwhile."""
    samples: list[Memory] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            samples.append(memory())

    printed, watcher = io.StringIO(), threading.Thread(target=watch)
    in_turn = (
        contextlib.nullcontext() if overlapped else mock.patch.object(embedder, "ahead", lambda items, depth: items)
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.txt"
        source.write_text("".join(text + "\n" for text in texts))
        options = ["--model", str(FOLDER), "--threads", str(threads)]
        watcher.start()
        try:
            with in_turn, contextlib.redirect_stdout(printed):
                code = cli.main(["encode", str(source), f"{folder}/vectors.npy", *options])
        finally:
            over.set()
            watcher.join()
        if code or np.load(f"{folder}/vectors.npy", mmap_mode="r").shape[0] != len(texts):
            raise SystemExit(printed.getvalue())
    first, shares = printed.getvalue().splitlines()[-2:]
    tokens, seconds = re.search(r"(\d+) tokens in ([\d.]+) s", first).groups()
    return {
        "texts": len(texts),
        "overlapped": overlapped,
        "tokens": int(tokens),
        "seconds": float(seconds),
        "shares": {name: float(share) for name, share in re.findall(r"(\w+) ([\d.]+)%", shares)},
        "hidden": float(re.search(r"; ([\d.]+)% of", shares)[1]),
        "line": shares,
        "private": [sample[os.getpid()]["private"] for sample in samples],
    }


def growth(private: list[int]) -> int:
    """Bytes by which the peak of the last quarter is above that of the second: batches differ, so samples do too."""
    quarter = max(1, len(private) // 4)
    return max(private[-quarter:]) - max(private[quarter : 2 * quarter])


def tokens_per_second(texts: list[str]) -> float:
    """Of the tokenizer on one core, the best of three."""
    tokenizer, best = load_tokenizer(str(FOLDER)), 0.0
    with mock.patch.dict(os.environ, {"TOKENIZERS_PARALLELISM": "false"}):
        for _ in range(3):
            start = time.perf_counter()
            tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts))
            best = max(best, tokens / (time.perf_counter() - start))
    return best


def arms(texts: list[str], threads: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Overlapped and one stage after the other, in turns."""
    for _ in range(rounds):
        for overlapped in (True, False):
            yield run(texts, threads, overlapped)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="run.py data/encode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--compared", type=int, default=10_000, help="texts of the comparison (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the model (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the record (default: benchmarks/results/<machine>)")
    args = parser.parse_args(argv)
    facts = timing.machine_facts()
    texts = sentences(args.texts)
    whole = run(texts, args.threads)
    print(f"{whole['texts']:,} texts, {whole['tokens']:,} tokens in {whole['seconds']} s")
    print(whole["line"])
    gained = growth(whole["private"])
    print(f"peak of private memory, last quarter against second: {gained / 2**20:+.1f} MiB")
    compared = list(arms(texts[: args.compared], args.threads, args.rounds))
    medians = [np.median([arm["seconds"] for arm in compared if arm["overlapped"] == on]) for on in (False, True)]
    print(f"{args.compared:,} texts, one stage after the other against overlapped: {medians[0] / medians[1]:.2f}x")
    tokenizer = tokens_per_second(texts[:10_000])
    print(f"tokenizer alone, one core: {tokenizer / 1e6:.2f} Mtok/s")
    record = {
        "whole": whole,
        "compared": compared,
        "tokenizer_tokens_s": tokenizer,
        "bytes_per_token": sum(len(text.encode()) + 1 for text in texts) / whole["tokens"],
    }
    path = (args.output or harness.FOLDER / "results" / harness.machine()) / "encode.json"
    durable.write_json(path, {"machine": facts, **record})
    print(path)
