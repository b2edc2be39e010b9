"""The whole model on the device: parity with transformers, host synchronisations, gradients, CUDA graphs."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gpu import pairs, training
from gpu.journal import Case, Skip
from gpu.sizes import Sizes

import modernbert_fast as mf
from modernbert_fast.commands.comparison import forward
from modernbert_fast.testing import assert_same_bits

REPLAYED_TOKENS = 1024  # of the largest batch


def cases(sizes: Sizes) -> Iterator[Case]:
    yield Case("CUDA graphs: other lengths", functools.partial(replays, sizes), 120)
    for name in sizes.models:
        yield Case(f"parity of {name}", functools.partial(parity, sizes, name), 90)
    yield Case("host synchronisations of a forward", functools.partial(synchronisations, sizes))
    yield Case("gradients of a masked language model", functools.partial(gradients, sizes), 90)


def parity(sizes: Sizes, name: str) -> dict[str, Any]:
    """Mixed lengths, padded on the right and on the left: the error rule against stock in a wider dtype."""
    stock = pairs.stock(sizes, name)
    fast = pairs.fast(stock)
    lengths = sizes.mixed()[:8]
    inputs = pairs.batch(stock.config, lengths, sizes.device)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    judge = pairs.judge(stock, inputs)
    judge.yardstick("stock", forward(stock, inputs))
    right = forward(fast, inputs)
    judge.check("modernbert_fast", right)
    left = forward(fast, {"input_ids": _left(ids, lengths), "attention_mask": mask.flip(1)})
    for i, n in enumerate(lengths):
        assert_same_bits(left[i, -n:], right[i, :n], f"text {i}, padded on the left")
    return {"limit": judge.limit, **judge.errors}


def synchronisations(sizes: Sizes) -> dict[str, int]:
    """At most one: where a batch is packed."""
    fast = pairs.fast(pairs.stock(sizes, next(iter(sizes.models))))
    inputs = pairs.batch(fast.config, sizes.mixed()[:8], sizes.device)
    forward(fast, inputs)
    if sizes.dry:
        raise Skip("there is nothing to synchronise with")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            forward(fast, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    count = sum("synchroniz" in str(warning.message) for warning in seen)
    assert count <= 1, f"{count} synchronisations"
    return {"synchronisations": count}


def gradients(sizes: Sizes) -> dict[str, float]:
    """Loss and gradients of the accelerated model against stock's, both measured in a wider dtype."""
    stock, fast = training.pair(sizes)
    return training.check(stock, fast, training.batch(sizes, sizes.lengths[0] * 2))


def replays(sizes: Sizes) -> dict[str, Any]:
    """Batches of other lengths than those recorded: the bits of the model without graphs, or where a product of another
    size rounds otherwise, an error that the rule allows; and the first batch gives its bits again in the end."""
    stock = pairs.stock(sizes, next(iter(sizes.models)))
    eager, graphs = pairs.fast(stock), pairs.fast(stock, cuda_graphs=True)
    drawn, same, first = np.random.default_rng(0), 0, None
    for _ in range(sizes.replays + 1):
        texts = int(drawn.integers(1, 9))
        lengths = drawn.integers(1, min(REPLAYED_TOKENS, sizes.tokens) // texts + 1, size=texts).tolist()
        inputs = pairs.batch(stock.config, lengths, sizes.device)
        got, expected = forward(graphs, inputs), forward(eager, inputs)
        first = first or (inputs, got)
        if torch.equal(got, expected):
            same += 1
            continue
        judge = pairs.judge(stock, inputs)
        judge.yardstick("stock", forward(stock, inputs))
        judge.check(f"a graph on lengths {lengths}", got)
    assert first is not None
    assert_same_bits(forward(graphs, first[0]), first[1], "the first batch, once more")
    said = mf.report(graphs).graphs[0]
    assert sizes.dry or not any("eager" in line for line in said), said
    return {"batches": sizes.replays + 1, "with the bits of eager": same, "report": "; ".join(said)}


def _left(ids: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.stack([row.roll(len(row) - n) for row, n in zip(ids, lengths, strict=True)])
