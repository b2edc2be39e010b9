"""Tensors of more than 2^31 elements: the first rows, those around the limit and the last are what they are alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from gpu.journal import Case, Skip
from gpu.sizes import Sizes

from modernbert_fast import dispatch, ops, timing
from modernbert_fast.config import SLIDING
from modernbert_fast.testing import assert_same_bits

TEXT = 512
BLOCK = 5 * TEXT  # rows compared in each place: whole texts, and whole fives for padding
Run = Callable[..., tuple[torch.Tensor, ...]]  # from tensors with a row a token to others


def cases(sizes: Sizes) -> Iterator[Case]:
    """Every row of the table that this device has, but the reference: it is not offered for speed or size."""
    C, H, F = sizes.config.hidden_size, sizes.config.num_attention_heads, sizes.config.intermediate_size
    heads, window = (H, C // H), sizes.config.window(SLIDING)
    asked: dict[str, tuple[str, list[tuple[int, ...]], Run]] = {
        "layer norm, both passes": ("layer_norm", [(C,), (C,)], _norm),
        "add and layer norm, both passes": ("layer_norm", [(C,)] * 4, _add_norm),
        "geglu, both passes": ("geglu", [(2 * F,), (F,)], _geglu),
        "attention, window, both passes": ("attention", [(3, *heads), heads], functools.partial(_attention, window)),
        "attention, global, both passes": ("attention", [(3, *heads), heads], functools.partial(_attention, -1)),
        "unpad and pad": ("padding", [(C,)], _padding),
    }
    for name, (op, shapes, run) in asked.items():
        for row in dispatch.TABLE[op]:
            if row.devices is not None and str(sizes.device) not in row.devices:
                continue
            if row.backend == "reference" and op != "padding":
                continue
            yield Case(
                f"beyond 2^31: {name}, {row.backend}",
                functools.partial(check, op, row.backend, shapes, run, sizes),
                limit=90,
            )


def check(op: str, backend: str, shapes: list[tuple[int, ...]], run: Run, sizes: Sizes) -> dict[str, int]:
    """Compares rows of one large call with the same rows in calls of their own."""
    widths = [torch.Size(shape).numel() for shape in shapes]
    rows = -(-sizes.beyond // min(widths) // BLOCK) * BLOCK + BLOCK  # even the narrowest tensor is beyond
    wanted = 3 * rows * sum(widths) * sizes.dtype.itemsize  # results, and what lies between
    free = timing.free_memory()
    if free is not None and wanted > 0.9 * free:
        raise Skip(f"wants {wanted / 2**30:.0f} GiB, {free / 2**30:.0f} are free")
    inputs = [torch.empty(rows, *shape, dtype=sizes.dtype, device=sizes.device).normal_() for shape in shapes]
    edges = {sizes.beyond // width // BLOCK * BLOCK for width in widths}
    with dispatch.use_backend(backend, op):
        try:
            results = run(*inputs)
        except dispatch.NoBackend as no:
            raise Skip(str(no)) from no
        for start in sorted({0, rows - BLOCK} | {edge for edge in edges if edge + BLOCK <= rows}):
            place = slice(start, start + BLOCK)
            for i, (big, alone) in enumerate(zip(results, run(*(x[place].clone() for x in inputs)), strict=True)):
                assert_same_bits(big[place], alone, f"result {i}, rows from {start}")
    return {"tokens": rows, "elements": rows * max(widths)}


def _norm(x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.detach().requires_grad_()
    y = ops.layer_norm(x)
    return y.detach(), *torch.autograd.grad(y, x, dy)


def _add_norm(
    x: torch.Tensor, residual: torch.Tensor, dy: torch.Tensor, dsum: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    x = x.detach().requires_grad_()
    y, total = ops.add_layer_norm(x, residual)
    return y.detach(), total.detach(), *torch.autograd.grad((y, total), x, (dy, dsum))


def _geglu(x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.detach().requires_grad_()
    y = ops.geglu(x)
    return y.detach(), *torch.autograd.grad(y, x, dy)


def _attention(window: int, qkv: torch.Tensor, do: torch.Tensor) -> tuple[torch.Tensor, ...]:
    cu_seqlens = torch.arange(0, len(qkv) + 1, TEXT, dtype=torch.int32, device=qkv.device)
    qkv = qkv.detach().requires_grad_()
    o = ops.attention(qkv, cu_seqlens, TEXT, window=window)
    return o.detach(), *torch.autograd.grad(o, qkv, do)


def _padding(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Every fifth row is padding."""
    places = torch.arange(len(x), device=x.device)
    kept = places[places % 5 != 2]
    return (ops.pad(ops.unpad(x, kept), kept, len(x)),)
