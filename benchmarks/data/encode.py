"""modernbert-fast encode over many real short texts: what each stage takes, what overlapping gains, flat memory.

python benchmarks/run.py data/encode --texts 100000

The texts are sentences of the docstrings of installed packages; the model is the small one of the package. Ends with an
error when memory that is in use grows (decision 0032).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import numpy as np
from data.workers import memory

from modernbert_fast import cli, durable, timing
from modernbert_fast.commands import embedder, encode
from modernbert_fast.commands.models import load_tokenizer
from modernbert_fast.commands.progress import Progress
from modernbert_fast.tiny import FOLDER

DOCSTRING = re.compile(r'"""(.*?)"""', re.S)
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
GROWTH = 2 * 2**20  # bytes in use that may come after the second quarter; 0.1 MiB do, of 60,000 texts (decision 0032)
SAMPLES = 200


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


class _MallocInfo(ctypes.Structure):
    """struct mallinfo2 of glibc 2.33 and later."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def in_use() -> dict[str, int]:
    """Bytes of private memory, and those that malloc has handed out (the same where malloc does not tell)."""
    private = memory()[os.getpid()]["private"]
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return {"private": private, "used": private}
    ask.restype = _MallocInfo
    told = ask()
    return {"private": private, "used": told.uordblks + told.hblkhd}


class _Watched(Progress):
    """Takes note of memory between shards, when no tensor of a batch is alive."""

    samples: list[dict[str, int]]

    def update(self, texts: int) -> None:
        before = self.done
        super().update(texts)
        if self.done * SAMPLES // self.total > before * SAMPLES // self.total:
            self.samples.append(in_use())


def run(texts: list[str], threads: int, overlapped: bool = True) -> dict[str, Any]:
    """One run of the command: seconds, its shares in percent, and the memory of this process between shards."""
    printed, _Watched.samples = io.StringIO(), []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        source = Path(folder) / "texts.txt"
        source.write_text("".join(text + "\n" for text in texts))
        options = ["--model", str(FOLDER), "--threads", str(threads)]
        patches.enter_context(mock.patch.object(encode, "Progress", _Watched))
        if not overlapped:
            patches.enter_context(mock.patch.object(embedder, "ahead", lambda items, depth: items))
        with contextlib.redirect_stdout(printed):
            code = cli.main(["encode", str(source), f"{folder}/vectors.npy", *options])
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
        **{kind: [sample[kind] for sample in _Watched.samples] for kind in ("private", "used")},
    }


def growth(samples: list[int]) -> int:
    """Bytes by which the median of the last quarter is above that of the second: shards differ, so samples do too."""
    quarter = max(1, len(samples) // 4)
    return int(np.median(samples[-quarter:]) - np.median(samples[quarter : 2 * quarter]))


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
    parser = harness.parser("data/encode", __doc__)
    parser.add_argument(
        "--texts", type=int, default=100_000, help="the cache of words fills to 50,000 (default: %(default)s)"
    )
    parser.add_argument("--compared", type=int, default=10_000, help="texts of the comparison (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the model (default: %(default)s)")
    args = parser.parse_args(argv)
    facts = timing.machine_facts()
    texts = sentences(args.texts)
    whole = run(texts, args.threads)
    print(f"{whole['texts']:,} texts, {whole['tokens']:,} tokens in {whole['seconds']} s")
    print(whole["line"])
    gained = {kind: growth(whole[kind]) for kind in ("used", "private")}
    for kind, what in (("used", "memory in use"), ("private", "private memory")):
        print(
            f"{what}: at most {max(whole[kind]) / 2**20:.1f} MiB, {gained[kind] / 2**20:+.1f} after the second quarter"
        )
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
    path = harness.record_path(args.output, "encode.json")
    durable.write_json(path, {"machine": facts, **record})
    print(path)
    if gained["used"] > GROWTH:
        raise SystemExit("memory in use grows")
