"""How full the streaming packer makes its bins, and how fast, by the time of one core.

python benchmarks/run.py data/packer --pieces 400000 --capacities 512,1024,8192

web        documents of a log-normal length (median 665 tokens), cut into pieces of the capacity
passages   log-normal, median 245 tokens, cut off at the capacity
sentences  log-normal, median 33 tokens
uniform    1 token to the capacity
hard       a third of the capacity to all of it, uniform: half of the pieces fit with no other; no packer fills this
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import harness
import numpy as np
import torch

from modernbert_fast import durable, packing, timing
from modernbert_fast.packing import Packer
from modernbert_fast.training.sampler import CHUNK, SPECIAL_TOKENS, PackedSampler, pieces

EFFICIENCY, TOKENS_A_SECOND = 0.99, 5e6  # what must hold, on all mixes but the last
HARD = "hard"


def mixes(capacity: int, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Piece lengths by name, each (count,) int64 from 1 to capacity."""
    rng = np.random.default_rng(0)
    cut = pieces(np.ceil(rng.lognormal(6.5, 1.3, count)).astype(np.int64), capacity)[:count]
    yield "web", cut[:, 2] - cut[:, 1] + SPECIAL_TOKENS
    for name, mean, spread in (("passages", 5.5, 1.0), ("sentences", 3.5, 0.6)):
        drawn = np.ceil(rng.lognormal(mean, spread, count)).astype(np.int64)
        yield name, np.minimum(drawn + SPECIAL_TOKENS, capacity)
    yield "uniform", rng.integers(1, capacity + 1, count)
    yield HARD, rng.integers(capacity // 3, capacity + 1, count)


def stream(lengths: np.ndarray, capacity: int) -> tuple[float, float]:
    """Efficiency of the bins, but for the last texts, and seconds of the processor for all pieces."""
    packer, items = Packer(), np.arange(lengths.size)
    bins: list[np.ndarray] = []
    start = time.process_time()
    for first in range(0, lengths.size, CHUNK):
        packer.add(items[first : first + CHUNK], lengths[first : first + CHUNK])
        while (bin := packer.take(capacity)) is not None:
            bins.append(bin)
    seconds = time.process_time() - start
    return lengths[np.concatenate(bins)].sum() / (len(bins) * capacity), seconds


def sample(lengths: np.ndarray, capacity: int) -> float:
    """Seconds of the processor for one epoch of a PackedSampler: shuffled, packed, a state kept for every batch."""
    start = time.process_time()
    sampler = PackedSampler(lengths, capacity, epochs=1)
    for _ in sampler:
        sampler.state_dict()
    return time.process_time() - start


def measure(name: str, lengths: np.ndarray, capacity: int) -> dict[str, Any]:
    tokens = int(lengths.sum())
    offline = packing.best_fit(lengths, capacity).max() + 1
    efficiency, seconds = stream(lengths, capacity)
    sampled = sample(lengths, capacity)
    compiled, packing._host = packing._host, None
    try:
        same, slowly = stream(lengths, capacity)
    finally:
        packing._host = compiled
    assert same == efficiency, "Python and C++ disagree"
    return {
        "mix": name,
        "capacity": capacity,
        "pieces": lengths.size,
        "mean": tokens / lengths.size,
        "efficiency": efficiency,
        "efficiency_offline": tokens / (offline * capacity),
        "tokens_s": tokens / seconds,
        "tokens_s_sampler": tokens / sampled,
        "tokens_s_python": tokens / slowly,
    }


def main(argv: list[str]) -> None:
    parser = harness.parser("data/packer", __doc__)
    parser.add_argument("--pieces", type=int, default=400_000, help="default: %(default)s")
    parser.add_argument("--capacities", default="512,1024,8192", help="default: %(default)s")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    facts, records = timing.machine_facts(), []
    print(f"{'capacity':>8} {'mix':<10} {'mean':>6} {'full':>8} {'offline':>8} {'M tokens/s':>11} sampler  Python")
    for capacity in map(int, args.capacities.split(",")):
        for name, lengths in mixes(capacity, args.pieces):
            record = measure(name, lengths, capacity)
            records.append(record)
            rates = [record[key] / 1e6 for key in ("tokens_s", "tokens_s_sampler", "tokens_s_python")]
            print(
                f"{capacity:>8} {name:<10} {record['mean']:>6.0f} {record['efficiency']:>8.2%}"
                f" {record['efficiency_offline']:>8.2%} {rates[0]:>11.0f} {rates[1]:>7.0f} {rates[2]:>7.0f}",
                flush=True,
            )
    path = harness.record_path(args.output, "packer.json")
    durable.write_json(path, {"machine": facts, "records": records})
    print(path)
    required = [record for record in records if record["mix"] != HARD]
    if any(record["efficiency"] < EFFICIENCY or record["tokens_s"] < TOKENS_A_SECOND for record in required):
        raise SystemExit(f"below {EFFICIENCY:.0%} or {TOKENS_A_SECOND / 1e6:.0f} M tokens/s")
