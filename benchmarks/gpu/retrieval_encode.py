"""sentence-transformers' own API on a GPU, stock and accelerated: python benchmarks/run.py gpu/retrieval_encode [--dry]

encode_document of MultiVectorEncoder, encode of SentenceTransformer, predict of CrossEncoder: mixed lengths, the
tokenizer included, each at several batch sizes; what counts is the best of each. Wall time, interleaved. Each kind gets
half of the time that is left, the last one all: a pilot tells how many texts fit into it, and arms that do not are
missing.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pipelines
import torch
from gpu import session, sizes
from gpu.journal import Case, Skip, work
from gpu.rows import model_rows

import modernbert_fast as mf
from modernbert_fast import timing
from modernbert_fast.commands.comparison import FAST
from modernbert_fast.commands.models import twin
from modernbert_fast.commands.parity import Parity, wider

PROGRAM = "gpu/retrieval_encode"
BUDGET = 400.0
STOCK, FLASH = "sentence-transformers sdpa", "sentence-transformers flash_attention_2"
KINDS = ("MultiVectorEncoder", "SentenceTransformer", "CrossEncoder")
BATCHES = (128, 32, 512)  # the most telling first
CHECKED, PILOT = 8, 64  # texts
ROUNDS = 3
LIMIT = 150.0  # seconds of a kind


def main(argv: list[str]) -> None:
    args = session.arguments(PROGRAM, __doc__, BUDGET).parse_args(argv)
    session.settle(args)
    if args.part:
        work(session.selected(cases(sizes.choose(args.dry), args.until), args.only), args.journal, args.until)
        return
    job = session.Job("encode", session.child(PROGRAM, "encode", args))
    sys.exit(session.run("retrieval-encode", [job], args))


def cases(chosen: sizes.Sizes, until: float) -> Iterator[Case]:
    for kind in KINDS:
        run = functools.partial(measure, chosen, kind, until, 1.0 if kind == KINDS[-1] else 0.5)
        yield Case(f"retrieval encode, {kind}", run, LIMIT)


def lengths(chosen: sizes.Sizes) -> list[int]:
    """Log-normal between a sixteenth of the shortest kind of text and all of it; eight batches' tokens."""
    longest, total = chosen.lengths[0], 8 * chosen.tokens
    drawn = np.random.default_rng(0).lognormal(np.log(longest / 5), 0.7, size=64 * total // longest)
    clipped = np.clip(drawn, max(longest // 16, 3), longest).astype(int)
    return [int(n) for n in clipped[: int(np.searchsorted(clipped.cumsum(), total))]]


def measure(chosen: sizes.Sizes, name: str, until: float, share: float = 1.0) -> dict[str, Any]:
    """Rows of all arms, and how many times as fast the best of ours is as the best of theirs.

    Args:
        until: time.time() at which all is over.
        share: of what is left that this kind may take.
    """
    until = time.time() + min((until - time.time()) * share, 0.8 * LIMIT)
    if timing.version("sentence-transformers") is None:
        raise Skip("sentence-transformers is not installed")
    kind, counts = pipelines.KINDS[name], lengths(chosen)
    texts = pipelines.texts(counts)
    with tempfile.TemporaryDirectory() as folder:
        pipelines.write(chosen.config, kind, Path(folder))
        weights = {"dtype": chosen.dtype, "attn_implementation": "sdpa"}
        stock = kind.build(folder, weights, str(chosen.device))
    models = {STOCK: stock, FAST: mf.accelerate(twin(stock))}
    missing: dict[str, str] = {}
    try:
        models[FLASH] = _flash(stock)
    except Exception as error:  # foreign code: any failure is a reason
        missing[FLASH] = harness.reason_of(error)
    counts, texts = (x[: _fitting(kind, stock, texts, until, len(models))] for x in (counts, texts))
    truth = torch.cat(_rows(kind.run(wider(stock), texts[:CHECKED], CHECKED))).double()
    parity = Parity(truth, lambda vectors: torch.cat(_rows(vectors[:CHECKED])))
    parity.yardstick(STOCK, kind.run(stock, texts[:CHECKED], CHECKED))
    failures: dict[str, str] = {}
    arms = []
    for size in BATCHES:
        for model_name, model in models.items():
            run = functools.partial(kind.run, model, texts, size)
            check = None if model_name == STOCK else functools.partial(parity.check, model_name)
            arms.append(timing.Arm(f"{model_name}, batches of {size}", run, check))

    def leave_out(arm: timing.Arm, error: Exception) -> bool:
        late = isinstance(error, TimeoutError)
        (failures if arm.name.startswith(FAST) and not late else missing)[arm.name] = harness.reason_of(error)
        return True

    taken = timing.interleave(arms, min(chosen.rounds, ROUNDS), 1, leave_out=leave_out, until=until)
    best = {n: min((m.median for m in taken if m.name.startswith(n)), default=None) for n in models}
    ratios = {f"best {n} / best ours": best[n] / best[FAST] for n in models if n != FAST and best[n] and best[FAST]}
    rows = model_rows(taken, kind.tokens(counts), f"{STOCK}, batches of {BATCHES[0]}")
    versions = {package: timing.version(package) for package in ("sentence-transformers", "transformers")}
    errors = {"limit": parity.limit, **parity.errors}
    more = {"texts": len(texts), "tokens": kind.tokens(counts), "errors": errors, "versions": versions}
    return {"rows": rows, **ratios, **more, "missing": missing, "failures": failures}


def _fitting(kind: pipelines.Kind, model: Any, texts: list[str], until: float, models: int) -> int:
    """As many texts as all arms can take until then, each as slow as the pilot of stock; PILOT at least."""
    few = texts[:PILOT]
    kind.run(model, few, len(few))  # what the first call does once
    each = timing.seconds(lambda: kind.run(model, few, len(few))) / len(few)
    return max(PILOT, int((until - time.time()) / (each * models * len(BATCHES) * (1 + ROUNDS))))


def _flash(stock: Any) -> Any:
    """Their best where flash-attn is: texts end to end."""
    flash = twin(stock)
    flash[0].model.set_attn_implementation("flash_attention_2")
    flash[0].unpad_inputs = None  # asks again whether texts may lie end to end
    return flash


def _rows(vectors: Any) -> list[torch.Tensor]:
    """Vectors of each text, (n, D) on the CPU."""
    return [x.reshape(-1, x.shape[-1]).cpu() for x in vectors]
