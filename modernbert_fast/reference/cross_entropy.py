"""Cross entropy over labelled rows in plain torch: the definition of right for ops/cross_entropy.py."""

from __future__ import annotations

import torch

_ROWS = 512  # rows whose logits exist at one time


def _chunks(labels: torch.Tensor, ignore_index: int) -> tuple[torch.Tensor, ...]:
    """Indices of the labelled rows, a chunk at a time."""
    labelled = (labels != ignore_index).nonzero().squeeze(1)
    return labelled.split(_ROWS) if labelled.numel() else ()


def _logits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, space: torch.Tensor) -> torch.Tensor:
    """Logits of a chunk of rows, in the memory that all chunks share."""
    out = space[: x.shape[0]]
    return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)


def _space(wide: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Room for the logits of one chunk."""
    return wide.new_empty(min(_ROWS, labels.shape[0]), wide.shape[0])


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (T, C), weight (V, C), labels (T,) -> loss (T,), lse (T,); zero for ignored rows."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide, wide_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    space = _space(wide, labels)
    loss, lse = (torch.zeros(x.shape[0], dtype=dtype, device=x.device) for _ in range(2))
    for rows in _chunks(labels, ignore_index):
        logits = _logits(x[rows].to(dtype), wide, wide_bias, space)
        wanted = logits.gather(1, labels[rows, None].long()).squeeze(1)
        top = logits.amax(1)
        lse[rows] = logits.sub_(top[:, None]).exp_().sum(1).log_().add_(top)
        loss[rows] = lse[rows] - wanted
    return loss, lse


def backward(
    dloss: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    lse: torch.Tensor,
    ignore_index: int,
    need_dx: bool,
    need_dweight: bool,
    need_dbias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dloss (T,) -> dx (T, C), dweight (V, C), dbias (V,); (0,) for each that is not needed."""
    wide, wide_bias = weight.to(lse.dtype), None if bias is None else bias.to(lse.dtype)
    space = _space(wide, labels)
    dx = x.new_zeros(x.shape if need_dx else 0)
    dweight = wide.new_zeros(weight.shape if need_dweight else 0)
    dbias = wide.new_zeros(weight.shape[0] if need_dbias else 0)
    for rows in _chunks(labels, ignore_index):
        kept = x[rows].to(lse.dtype)
        # Not exp(logits - lse): at logits of 1e3 the last place of an fp32 lse is 1e-4.
        dlogits = _logits(kept, wide, wide_bias, space)
        dlogits.sub_(dlogits.amax(1, keepdim=True)).exp_().div_(dlogits.sum(1, keepdim=True))
        dlogits.scatter_add_(1, labels[rows, None].long(), dlogits.new_full((rows.numel(), 1), -1.0))
        dlogits *= dloss[rows, None]
        if need_dx:
            dx[rows] = (dlogits @ wide).to(x.dtype)
        if need_dweight:
            dweight.addmm_(dlogits.t(), kept)
        if need_dbias:
            dbias += dlogits.sum(0)
    return dx, dweight.to(weight.dtype), dbias.to(weight.dtype)
