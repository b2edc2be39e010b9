"""sentence-transformers' own API on CPU, stock and accelerated, on texts of mixed lengths.

python benchmarks/run.py models/sentence_transformers --dtype bfloat16 --rounds 3

encode, predict, encode_document, encode_query with ColBERT's expansion, and encode of the kinds of model, with the
tokenizer. Stock runs as it is best: sdpa, texts sorted by length, and at several batch sizes, the smallest without any
padding; ours at its default of 32.
Before the clock starts, vectors of both in float32 are compared, and ours in this dtype held to the error rule.

The tail of many vectors a text, step by step, is timed on as many tokens: what there is to win by one kernel for it.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pipelines
import torch

import modernbert_fast as mf
from modernbert_fast import durable, encoder, tail, timing
from modernbert_fast.commands.comparison import FAST
from modernbert_fast.commands.flags.shared import positive
from modernbert_fast.commands.models import twin
from modernbert_fast.commands.parity import Parity
from modernbert_fast.config import EncoderConfig
from modernbert_fast.retrieval.quantize import store

STOCK = "sentence-transformers"
CHECKED = 8  # texts
LONGEST = 512
ENOUGH = 0.9999  # cosine in float32


def lengths(texts: int, longest: int) -> list[int]:
    """Log-normal numbers of tokens, from 16 on; the median is a fifth of `longest`, as of the workload `var`."""
    drawn = np.random.default_rng(33).lognormal(mean=np.log(longest / 5.15), sigma=0.7, size=texts)
    return np.clip(drawn, min(16, longest), longest).astype(int).tolist()


def compare(kind: pipelines.Kind, folder: str, texts: list[str]) -> tuple[float, Parity]:
    """The smallest cosine of a vector of ours in float32 with stock's, and the judge of narrower ones."""
    model = kind.build(folder, {"dtype": torch.float32, "attn_implementation": "sdpa"}, "cpu")
    theirs = rows(kind.run(model, texts, CHECKED))
    ours = rows(kind.run(mf.accelerate(model), texts, CHECKED))
    if ours.shape[1] == 1:  # of scores: all together
        ours, theirs = ours.T, theirs.T
    cosine = torch.nn.functional.cosine_similarity(ours.double(), theirs.double()).min().item()
    mf.restore(model)
    truth = rows(kind.run(model, texts, CHECKED))
    return cosine, Parity(truth, lambda vectors: rows(vectors)[: len(truth)])


def rows(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Vectors of all texts, (N, D)."""
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in vectors])


def measure(
    kind: pipelines.Kind, config: EncoderConfig, dtype: torch.dtype, texts: list[str], tokens: int, args: Any
) -> dict[str, Any]:
    """Medians, and by how much ours is faster than stock at each batch size."""
    with tempfile.TemporaryDirectory() as folder:
        pipelines.write(config, kind, Path(folder))
        cosine, parity = compare(kind, folder, texts[:CHECKED])
        if not cosine >= ENOUGH:
            raise ArithmeticError(f"{kind.name}: cosine {cosine} with stock in float32 is below {ENOUGH}")
        stock = kind.build(folder, {"dtype": dtype, "attn_implementation": "sdpa"}, "cpu")
    fast = mf.accelerate(twin(stock))
    parity.yardstick(STOCK, kind.run(stock, texts[:CHECKED], CHECKED))
    ours = timing.Arm(FAST, functools.partial(kind.run, fast, texts, args.batch), functools.partial(parity.check, FAST))
    arms = [ours]
    for size in args.stock_batches:
        arms.append(timing.Arm(f"{STOCK}, batches of {size}", functools.partial(kind.run, stock, texts, size)))
    taken = timing.interleave(arms, args.rounds)
    fastest = taken[0].median
    return {
        "kind": kind.name,
        "texts": len(texts),
        "tokens": tokens,
        "cosine_float32": cosine,
        "error_limit": parity.limit,
        "errors": parity.errors,
        "arms": [
            {**m.as_dict(), "tokens_per_second": tokens / m.median, "ours_ahead": m.median / fastest} for m in taken
        ],
    }


def tail_shares(config: EncoderConfig, dtype: torch.dtype, tokens: int, total: float, rounds: int) -> dict[str, float]:
    """What each step from hidden states to an index takes, as a share of `total` seconds."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, config.hidden_size).to(dtype)
    linear = torch.nn.Linear(config.hidden_size, pipelines.DIM, bias=False, dtype=dtype)
    kept, bounds = torch.arange(0, tokens, 2), torch.tensor([0, (tokens + 1) // 2])
    with torch.inference_mode():
        rows = encoder.project(linear, hidden)
        vectors = tail.select(rows, kept, True)
        steps = {
            "projection": lambda: encoder.project(linear, hidden),
            "skip list and unit length": lambda: tail.select(rows, kept, True),
            "store float16": lambda: store(vectors, bounds, "float16"),
            "store int8": lambda: store(vectors, bounds, "int8"),
        }
        taken = timing.interleave([timing.Arm(name, step) for name, step in steps.items()], 5 * rounds)
    return {m.name: m.median / total for m in taken}


def main(argv: list[str]) -> None:
    parser = harness.parser("models/sentence_transformers", __doc__)
    parser.add_argument("--kinds", default=",".join(pipelines.KINDS), help="default: %(default)s")
    parser.add_argument("--layers", type=positive, default=22, help="of base (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--texts", type=positive, default=128, help="default: %(default)s")
    parser.add_argument("--longest", type=positive, default=LONGEST, help="tokens of a text (default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=32, help="ours (default: %(default)s)")
    parser.add_argument("--stock-batches", type=sizes, default="32,8,1", help="default: %(default)s")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="default: %(default)s")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    facts = timing.machine_facts() | {"sentence-transformers": timing.version("sentence-transformers")}
    name = f"sentence-transformers-{args.dtype}{'' if args.longest == LONGEST else f'-{args.longest}'}.json"
    path = harness.record_path(args.output, name)
    config = EncoderConfig.from_dict(
        {**EncoderConfig.preset("base").to_dict(), "num_hidden_layers": args.layers, "layer_types": None}
    )
    counts = lengths(args.texts, args.longest)
    texts = pipelines.texts(counts)
    results: list[dict[str, Any]] = []
    for name in args.kinds.split(","):
        kind = pipelines.KINDS[name]
        results.append(measure(kind, config, getattr(torch, args.dtype), texts, kind.tokens(counts), args))
        cosine = results[-1]["cosine_float32"]
        print(f"{name}: {len(texts)} texts, {kind.tokens(counts)} tokens; float32 cosine {cosine:.7f}")
        for arm in results[-1]["arms"]:
            ahead = "" if arm["name"] == FAST else f"ours ahead {arm['ours_ahead']:.2f}x"
            print(
                f"  {arm['name']:<40} {arm['median']:>8.2f} s {arm['tokens_per_second']:>8.0f} tokens/s  {ahead}",
                flush=True,
            )
        if name == "MultiVectorEncoder":
            ours = results[-1]["arms"][0]["median"]
            shares = tail_shares(config, getattr(torch, args.dtype), sum(counts), ours, args.rounds)
            results[-1]["tail"] = shares
            print("  of ours: " + ", ".join(f"{step} {share:.3%}" for step, share in shares.items()), flush=True)
        options = {k: v for k, v in vars(args).items() if k != "output"}
        durable.write_json(path, {"options": options, "machine": facts, "results": results})
    print(path, flush=True)


def sizes(text: str) -> list[int]:
    """An argparse type: batch sizes by comma."""
    return [positive(word) for word in text.split(",")]
