"""MaxSim on a GPU: exact search over the vectors of an index, and the shapes that flash-maxsim and
late-interaction-kernels publish, against both where they are installed.

python benchmarks/run.py gpu/bench --only maxsim
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import torch
from gpu.journal import Case
from gpu.sizes import Sizes

from modernbert_fast import ops, timing
from modernbert_fast.retrieval import Index, IndexWriter

DIM, BEST = 128, 10
OURS = "modernbert_fast"
# Queries, tokens of each, documents, tokens of each.
SHAPES = (
    (1, 32, 1000, 300),  # flash-maxsim: textual, and late-interaction-kernels
    (1, 32, 1000, 1024),  # flash-maxsim: long documents
    (1, 128, 1000, 1024),  # flash-maxsim: medium; late-interaction-kernels: ColPali
    (1, 512, 1000, 1024),  # flash-maxsim: visual
    (1, 1024, 1000, 1024),  # flash-maxsim: ColPali
    (16, 32, 32, 8192),  # late-interaction-kernels: long context
)
TRAINING = (64, 32, 64, 300)  # flash-maxsim: contrastive, forward and backward
Run = Callable[[], torch.Tensor]


def cases(sizes: Sizes) -> Iterator[Case]:
    for dtype in ("float16", "int8"):
        yield Case(f"maxsim search, {dtype}", functools.partial(search, sizes, dtype), 120)
    for shape in SHAPES:
        yield Case(f"maxsim {_words(shape)}", functools.partial(scoring, sizes, _small(shape, sizes)), 120)
    name = f"maxsim {_words(TRAINING)}, forward and backward"
    yield Case(name, functools.partial(training, sizes, _small(TRAINING, sizes)), 120)


def search(sizes: Sizes, dtype: str) -> dict[str, Any]:
    """One query of 32 vectors over as many documents and vectors as sentence-transformers times: 4,874 and 608,414."""
    documents, total = (40, 400) if sizes.dry else (4874, 608_414)
    lengths = lengths_of(documents, total)
    cu = torch.tensor([*itertools.accumulate(lengths, initial=0)], dtype=torch.int32)
    query, vectors = _unit(32, sizes), _unit(total, sizes)
    one = torch.tensor([0, 32], dtype=torch.int32, device=sizes.device)
    with tempfile.TemporaryDirectory() as folder:
        with IndexWriter(Path(folder) / "index", DIM, dtype) as writer:
            writer.add([str(i) for i in range(documents)], vectors.float().cpu(), cu)
        index = Index(Path(folder) / "index", sizes.device)
        d, bounds, scales, _ = index.segments[0].on(sizes.device)
        half = d.to(query.dtype) if scales is None else d.to(query.dtype) * scales.repeat_interleave(
            bounds.diff(), output_size=total
        )[:, None].to(query.dtype)  # fmt: skip
        truth = _truth(query, half, bounds)
        host_query = query.cpu()
        arms: dict[str, Run] = {
            f"{OURS}, scores": lambda: _scaled(ops.maxsim(query, d, one, bounds), scales)[0],
            f"{OURS}, {BEST} best": lambda: ops.maxsim_topk(query, d, one, bounds, BEST, scales=scales)[0][0],
            "torch: one product, a maximum a document": lambda: _segments(query, half, bounds),
        }
        arms |= _rivals_of_search(query, half, d, scales, bounds, lengths)
        result = _measured(sizes, arms, truth, 2 * 32 * total * DIM, d.numel() * d.element_size())
        whole = timing.Arm(f"Index.search, {BEST} best, wall time", lambda: index.search(host_query, one.cpu(), BEST))
        (taken,) = timing.interleave([whole], 4 * sizes.rounds, sizes.warmup)
        result["rows"].append(
            {"arm": taken.name, "us": taken.median * 1e6, "p20": taken.p20 * 1e6, "p80": taken.p80 * 1e6}
        )
    return result


def scoring(sizes: Sizes, shape: tuple[int, int, int, int]) -> dict[str, Any]:
    """Every query against every document, all of one length, which suits the rivals' padded layouts best."""
    (queries, Lq, documents, Ld), q, d, cu_q, cu_d = shape, *_packed(sizes, shape)
    padded_q, padded_d = q.view(queries, Lq, DIM), d.view(documents, Ld, DIM)
    arms: dict[str, Run] = {
        OURS: lambda: ops.maxsim(q, d, cu_q, cu_d),
        "flash-maxsim": lambda: _flash(padded_q, padded_d),
        "late-interaction-kernels": lambda: _lik().maxsim(padded_q, padded_d),
    }
    truth = torch.stack([_truth(query, d, cu_d) for query in padded_q])
    with torch.no_grad():
        return _measured(sizes, arms, truth, 2 * len(q) * len(d) * DIM, 2 * DIM * (len(q) + len(d)))


def training(sizes: Sizes, shape: tuple[int, int, int, int]) -> dict[str, Any]:
    """In-batch scores and their gradients; checked are the gradients of the documents."""
    (queries, Lq, documents, Ld), q, d, cu_q, cu_d = shape, *_packed(sizes, shape)
    q, d = q.requires_grad_(), d.requires_grad_()
    weights = torch.randn(queries, documents, device=sizes.device)

    def gradients(scores: Callable[[], torch.Tensor]) -> Run:
        return lambda: torch.autograd.grad(scores(), (q, d), weights)[1].float()

    def batched() -> torch.Tensor:
        import flash_maxsim

        return flash_maxsim.flash_maxsim_batched_train(q.view(queries, Lq, DIM), d.view(documents, Ld, DIM))

    def dense() -> torch.Tensor:
        products = torch.einsum("qld,ntd->qnlt", q.view(queries, Lq, DIM), d.view(documents, Ld, DIM))
        return products.float().amax(-1).sum(-1)

    arms = {
        OURS: gradients(lambda: ops.maxsim(q, d, cu_q, cu_d)),
        "flash-maxsim": gradients(batched),
        "late-interaction-kernels": gradients(
            lambda: _lik().maxsim(q.view(queries, Lq, DIM), d.view(documents, Ld, DIM))
        ),
        "torch einsum": gradients(dense),
    }
    wide_q, wide_d = (x.detach().float().requires_grad_() for x in (q, d))
    products = torch.einsum("qld,ntd->qnlt", wide_q.view(queries, Lq, DIM), wide_d.view(documents, Ld, DIM))
    (truth,) = torch.autograd.grad(products.amax(-1).sum(-1), wide_d, weights)
    return _measured(sizes, arms, truth, 4 * len(q) * len(d) * DIM, 4 * DIM * (len(q) + len(d)))


def _measured(sizes: Sizes, arms: dict[str, Run], truth: torch.Tensor, flops: int, bytes: int) -> dict[str, Any]:
    """A rival that cannot run or is wrong is missing; an arm of ours that is wrong is a failure."""
    missing: dict[str, str] = {}
    failures: dict[str, str] = {}

    def check(found: torch.Tensor) -> None:
        expected = truth.topk(BEST).values if found.shape != truth.shape else truth
        error = (found.float() - expected).norm() / expected.norm()
        assert error < 0.01, f"relative error {float(error):.2e}"

    def leave_out(arm: timing.Arm, error: Exception) -> bool:
        (failures if arm.name.startswith(OURS) else missing)[arm.name] = harness.reason_of(error)
        return True

    taken = timing.interleave(
        [timing.Arm(name, run, check) for name, run in arms.items()],
        sizes.rounds, sizes.warmup, clock=timing.device_seconds, leave_out=leave_out,
    )  # fmt: skip
    rivals = [m.median for m in taken if not m.name.startswith(OURS)]
    rows = [
        {
            "arm": m.name,
            "us": m.median * 1e6,
            "p20": m.p20 * 1e6,
            "p80": m.p80 * 1e6,
            "TB/s": bytes / m.median / 1e12,
            "TFLOP/s": flops / m.median / 1e12,
            "x best rival": min(rivals) / m.median if rivals else None,
        }
        for m in taken
    ]
    return {"rows": rows, "missing": missing, "failures": failures}


def _rivals_of_search(
    query: torch.Tensor,
    half: torch.Tensor,
    d: torch.Tensor,
    scales: torch.Tensor | None,
    bounds: torch.Tensor,
    lengths: list[int],
) -> dict[str, Run]:
    """Over packed documents; the int8 one of flash-maxsim wants them padded."""
    one = torch.tensor([0, len(query)], dtype=torch.int32, device=query.device)
    longest = max(lengths)

    def packed() -> torch.Tensor:
        import flash_maxsim

        return flash_maxsim.flash_maxsim_packed(query, half, bounds, longest)

    def varlen() -> torch.Tensor:
        return _lik().maxsim_varlen(query, half, one, bounds, len(query), longest)[0]

    arms: dict[str, Run] = {}
    if scales is None:
        return {"flash-maxsim, packed": packed, "late-interaction-kernels, varlen": varlen}
    counts = torch.tensor(lengths, dtype=torch.int32, device=query.device)
    padded = torch.nn.utils.rnn.pad_sequence(d.split(lengths), batch_first=True)
    steps = scales[:, None].expand(-1, longest).contiguous()

    def int8() -> torch.Tensor:
        import flash_maxsim

        return flash_maxsim.flash_maxsim_int8x8(query, padded, steps, doc_lengths=counts)

    return arms | {"flash-maxsim, int8 padded": int8}


def _flash(q: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    import flash_maxsim

    return flash_maxsim.flash_maxsim(q[0], d)[None] if len(q) == 1 else flash_maxsim.flash_maxsim_batched(q, d)


def _lik() -> Any:
    import late_interaction_kernels

    return late_interaction_kernels


def _segments(query: torch.Tensor, d: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    return torch.segment_reduce((d @ query.T).float(), "max", offsets=bounds.long(), axis=0).sum(1)


def _truth(query: torch.Tensor, d: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Scores (N,) in fp32, a few million products at a time."""
    edges, wide = bounds.tolist(), query.float()
    at_once = max(1, 2**24 // len(query) // max(1, len(d) // max(len(edges) - 1, 1)))
    parts = []
    for first in range(0, len(edges) - 1, at_once):
        own = edges[first : first + at_once + 1]
        offsets = torch.tensor(own, device=d.device) - own[0]
        products = d[own[0] : own[-1]].float() @ wide.T
        parts.append(torch.segment_reduce(products, "max", offsets=offsets, axis=0).sum(1))
    return torch.cat(parts)


def _scaled(scores: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    return scores if scales is None else scores * scales


def _packed(sizes: Sizes, shape: tuple[int, int, int, int]) -> tuple[torch.Tensor, ...]:
    queries, Lq, documents, Ld = shape
    bounds = (
        torch.arange(n + 1, device=sizes.device, dtype=torch.int32) * L for n, L in ((queries, Lq), (documents, Ld))
    )
    return _unit(queries * Lq, sizes), _unit(documents * Ld, sizes), *bounds


def _unit(tokens: int, sizes: Sizes) -> torch.Tensor:
    """Vectors (tokens, DIM) of length 1; float16, which flash-maxsim wants, but in a rehearsal."""
    draw = torch.Generator(sizes.device).manual_seed(tokens)
    x = torch.randn(tokens, DIM, generator=draw, device=sizes.device)
    return torch.nn.functional.normalize(x, dim=1).to(torch.float32 if sizes.dry else torch.float16)


def lengths_of(documents: int, total: int) -> list[int]:
    """Lengths of documents, uneven, that add up."""
    weights = [1 + i * 7919 % 245 for i in range(documents)]
    scaled = [max(1, w * total // sum(weights)) for w in weights]
    scaled[0] += total - sum(scaled)
    return scaled


def _small(shape: tuple[int, int, int, int], sizes: Sizes) -> tuple[int, int, int, int]:
    queries, Lq, documents, Ld = shape
    return (min(queries, 2), min(Lq, 40), 12, 20) if sizes.dry else shape


def _words(shape: tuple[int, int, int, int]) -> str:
    return "{} x {} tokens, {} x {}".format(*shape)
