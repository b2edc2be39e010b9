"""A step of masked language modelling: stock against accelerated, in the same precision."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import harness
import torch
from gpu import pairs
from gpu.journal import Case
from gpu.rows import model_rows
from gpu.sizes import Sizes

import modernbert_fast as mf
from modernbert_fast import timing
from modernbert_fast.commands.models import random_model
from modernbert_fast.commands.parity import wider

LABELLED = 0.3  # as ModernBERT was trained
STOCK, FAST = "transformers sdpa", "modernbert_fast"


def cases(sizes: Sizes) -> Iterator[Case]:
    for name, lengths in (("one length", sizes.texts(sizes.lengths[0], sizes.train_tokens)), ("mixed", sizes.mixed())):
        yield Case(f"training step, {name}", functools.partial(measure, sizes, lengths), 90)


def pair(sizes: Sizes, **options: Any) -> tuple[Any, Any]:
    """Two models with the same weights and without dropout, each with parameters of its own."""
    from transformers import AutoModelForMaskedLM

    stock = random_model(AutoModelForMaskedLM, sizes.config, sizes.dtype)
    stock.set_attn_implementation("sdpa")
    stock = stock.to(sizes.device).train()
    return stock, mf.accelerate(copy.deepcopy(stock), **options)


def batch(sizes: Sizes, tokens: int, lengths: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    """Texts of `lengths`, or of the first length in mind, up to `tokens`, and labels for a part of their tokens."""
    kept, total = [], 0
    for length in lengths or sizes.texts(sizes.lengths[0], tokens):
        if total + length <= tokens or not kept:
            kept.append(length)
            total += length
    inputs = pairs.batch(sizes.config, kept, sizes.device)
    ids = inputs["input_ids"]
    real = inputs.get("attention_mask", torch.ones_like(ids)) > 0
    draw = torch.Generator().manual_seed(0)
    labelled = (torch.rand(ids.shape, generator=draw) < LABELLED).to(sizes.device) & real
    return {**inputs, "labels": ids.masked_fill(~labelled, -100)}


def measure(sizes: Sizes, lengths: tuple[int, ...]) -> dict[str, Any]:
    """Forward, backward and AdamW."""
    stock, fast = pair(sizes)
    _, lean = pair(sizes, loss_only=True)
    check(stock, fast, batch(sizes, 2 * sizes.lengths[0]))
    inputs = batch(sizes, sizes.train_tokens, lengths)
    tokens = int(inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).sum())
    missing: dict[str, str] = {}
    models = {STOCK: stock, FAST: fast, f"{FAST}, loss_only": lean}
    arms = [timing.Arm(name, step(model, inputs)) for name, model in models.items()]
    taken = timing.interleave(
        arms, max(sizes.rounds // 3, 1), warmup=sizes.warmup, clock=timing.device_seconds,
        leave_out=lambda arm, error: arm.name == STOCK and not missing.update({arm.name: harness.reason_of(error)}),
    )  # fmt: skip
    return {"rows": model_rows(taken, tokens, STOCK), "missing": missing}


def check(
    stock: Any, fast: Any, inputs: dict[str, torch.Tensor], what: tuple[str, ...] = ("loss", "gradients")
) -> dict[str, float]:
    """The error rule for the loss and for all gradients as one vector.

    Raises:
        AssertionError: the accelerated model is further from the truth than it allows.
    """
    (truth, wide), (loss, grads), (our_loss, ours) = (_gradients(m, inputs) for m in (wider(stock), stock, fast))
    errors = {
        "loss": abs(our_loss - truth),
        "loss of stock": abs(loss - truth),
        "gradients": _distance(ours, wide),
        "gradients of stock": _distance(grads, wide),
    }
    eps = torch.finfo(next(stock.parameters()).dtype).eps
    for name in what:
        size = abs(truth) if name == "loss" else _distance(wide, {})
        limit = 2 * errors[f"{name} of stock"] + eps / 2 * size
        assert errors[name] <= limit, f"{name}: error {errors[name]:.3g} is beyond {limit:.3g}"
    return errors


def step(model: Any, inputs: dict[str, torch.Tensor]) -> Callable[[], Any]:
    """Forward, backward and an AdamW of the model's own."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _gradients(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    found = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return float(loss.detach()), found


def _distance(got: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    """The norm of the difference; of `got` itself where the truth is empty."""
    return (
        sum(float((g.double() - truth.get(n, torch.zeros_like(g)).double()).square().sum()) for n, g in got.items())
        ** 0.5
    )
