"""One epoch of many short texts through many data workers: every text once, by its content, and memory that stays flat.

python benchmarks/run.py data/workers --texts 1000000 --workers 16

Texts go all the way: tokenised into a store, cut, shuffled, packed, masked and flattened by the workers, and here
unmasked by their labels, cut apart again and hashed. What should come is hashed from the texts themselves.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

from modernbert_fast import durable, heads, timing
from modernbert_fast.commands.corpus import manual_texts
from modernbert_fast.training.dataset import TextDataset
from modernbert_fast.training.loader import PackedLoader
from modernbert_fast.training.masking import MaskedLMCollator
from modernbert_fast.training.sampler import PackedSampler, pieces
from modernbert_fast.training.store import TokenStore, build_store
from modernbert_fast.training.tokenizer import save_tokenizer, train_tokenizer

MAX_LENGTH = 64
GROWTH = 8 * 2**20  # bytes of private memory that a process may gain after the first quarter
SAMPLES = 40


Memory = dict[int, dict[str, int]]  # bytes by process: resident, and private


def texts(count: int) -> Iterator[str]:
    """Different texts of 3 to 24 words, each with its number."""
    words = sorted(set(" ".join(manual_texts()).split()))
    rng = np.random.default_rng(0)
    for number in range(count):
        chosen = rng.integers(len(words), size=rng.integers(2, 24))
        yield " ".join([str(number), *(words[i] for i in chosen)])


def digest(ids: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(ids.astype(np.int32).tobytes(), digest_size=8).digest(), "little")


def expected(count: int, tokenizer: Any) -> np.ndarray:
    """Sorted digests of the texts as the tokenizer frames them, without store, sampler and workers."""
    source, digests = texts(count), []
    while chunk := list(itertools.islice(source, 10_000)):
        digests += [digest(np.array(encoding.ids)) for encoding in tokenizer.encode_batch_fast(chunk)]
    return np.sort(np.array(digests, np.uint64))


def received(loader: PackedLoader, count: int, samples: list[Memory], every: int) -> tuple[np.ndarray, int]:
    """Sorted digests of the texts that come, and how many tokens were masked; memory goes to samples.

    Raises:
        SystemExit: when more than count texts come.
    """
    digests = np.full(count, -1).view(np.uint64)  # written, so that filling it takes no memory
    masked = came = 0
    for number, batch in enumerate(loader):
        labels = batch["labels"][0]
        chosen = labels != heads.IGNORE
        ids = torch.where(chosen, labels, batch["input_ids"][0]).numpy()
        masked += int(chosen.sum())
        for text in np.split(ids, batch["cu_seq_lens_q"][1:-1].numpy()):
            if came == count:
                raise SystemExit("more texts come than there are")
            digests[came] = digest(text)
            came += 1
        if number % every == every - 1:
            samples.append(memory())
    return np.sort(digests[:came]), masked


def memory() -> Memory:
    """Of this process and of its workers; no file is behind private memory."""
    found = {}
    for pid in [os.getpid(), *(worker.pid for worker in multiprocessing.active_children())]:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()[1:]}
        found[pid] = {"resident": sizes["Rss"], "private": sizes["Anonymous"]}
    return found


def growth(samples: list[Memory]) -> dict[str, int]:
    """The most private memory that this process and any worker gained between the first quarter and the last sample."""
    early, late = samples[len(samples) // 4], samples[-1]
    gained = {pid: late[pid]["private"] - early[pid]["private"] for pid in late if pid in early}
    own = gained.pop(os.getpid())
    return {"parent": own, "worker": max(gained.values(), default=0)}


def run(count: int, workers: int, folder: Path, tokens_per_batch: int) -> dict[str, Any]:
    """Everything but the printing.

    Raises:
        SystemExit: when a text is lost, doubled or altered, or memory grows.
    """
    tokenizer = train_tokenizer(manual_texts(), vocab_size=4096)
    save_tokenizer(tokenizer, folder / "tokenizer")
    start = time.perf_counter()
    store: TokenStore = build_store(texts(count), folder / "tokenizer", folder / "store", sentences=False)
    built = time.perf_counter() - start
    cut = pieces(store.lengths, MAX_LENGTH * 4)
    if len(cut) != count:
        raise SystemExit(f"{len(cut)} pieces of {count} texts")
    dataset = TextDataset(store, cut)
    sampler = PackedSampler(dataset.lengths, tokens_per_batch, epochs=1)
    loader = PackedLoader(dataset, sampler, MaskedLMCollator.from_store(store), workers)
    samples: list[Memory] = []
    tokens = int(dataset.lengths.sum())
    start = time.perf_counter()
    came, masked = received(loader, count, samples, max(1, tokens // tokens_per_batch // SAMPLES))
    seconds = time.perf_counter() - start
    should = expected(count, tokenizer)
    if np.unique(should).size != count:
        raise SystemExit("the texts themselves are not all different")
    if not np.array_equal(came, should):
        lost, strange = np.setdiff1d(should, came).size, np.setdiff1d(came, should).size
        raise SystemExit(f"{lost} texts lost, {came.size - np.unique(came).size} doubled, {strange} altered")
    return {
        "texts": count,
        "workers": workers,
        "tokens": tokens,
        "masked": masked / (tokens - 2 * count),
        "build_texts_s": count / built,
        "texts_s": count / seconds,
        "growth": growth(samples),
        "private": [sum(process["private"] for process in sample.values()) for sample in samples],
        "resident": [sum(process["resident"] for process in sample.values()) for sample in samples],
    }


def main(argv: list[str]) -> None:
    parser = harness.parser("data/workers", __doc__)
    parser.add_argument("--texts", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--tokens-per-batch", type=int, default=8192, help="default: %(default)s")
    args = parser.parse_args(argv)
    facts = timing.machine_facts()
    with tempfile.TemporaryDirectory() as folder:
        record = run(args.texts, args.workers, Path(folder), args.tokens_per_batch)
    print(
        f"{record['texts']:,} texts, {record['tokens']:,} tokens: none lost or doubled; {record['masked']:.2%} masked"
    )
    print(
        f"built at {record['build_texts_s']:,.0f} texts/s, read by {args.workers} workers at {record['texts_s']:,.0f}"
    )
    for name, gained in record["growth"].items():
        print(f"private memory after the first quarter, {name}: {gained / 2**20:+.1f} MiB")
    path = harness.record_path(args.output, "workers.json")
    durable.write_json(path, {"machine": facts, **record})
    print(path)
    if max(record["growth"].values()) > GROWTH:
        raise SystemExit("memory grows")
