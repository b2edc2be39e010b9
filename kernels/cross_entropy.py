"""Loss of labelled rows over the vocabulary, in chunks. Reference: modernbert_fast/reference/cross_entropy.py.

The products are torch's: 2CV flops a labelled row forward, 6CV backward, where the logits are computed again. They are
of the dtype of x, 2 bytes each in half precision. Forward writes them once and reads them once; backward writes them
twice and reads them five times (two passes of the softmax, both products, the sum of the bias). A chunk has
launch.logits_rows(V) rows, 2^27 logits at most. Each call reads how many rows are labelled, and so waits for the GPU.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from modernbert_fast.kernels import launch


@triton.jit
def _rows(rows_ptr, labels_ptr, logits_ptr, R, V, ROWS: tl.constexpr):
    """The program's rows of the chunk: where their logits begin, which of the T they are, which are there, labels."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(rows_ptr + r, mask=r < R, other=0)
    label = tl.load(labels_ptr + row, mask=r < R, other=-1).to(tl.int64)
    return logits_ptr + r * V, row, r < R, label


@triton.jit
def _statistics(row_ptr, there, V, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Largest logit of each row and the sum of exp(logit - largest); every lane keeps its own until the end."""
    peak = tl.full((ROWS, BLOCK), float("-inf"), tl.float32)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, V, BLOCK):
        v = first + tl.arange(0, BLOCK)
        mask = there[:, None] & (v < V)[None, :]
        logit = tl.load(row_ptr[:, None] + v[None, :], mask=mask, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, logit)
        # Lanes that have seen nothing yet keep a peak of -inf: nothing minus nothing is not a number.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(peak - base) + tl.exp(logit - base)
        peak = higher
    top = tl.max(peak, axis=1)
    base = tl.where(there, top, 0.0)
    return top, tl.sum(total * tl.exp(peak - base[:, None]), axis=1)


@triton.jit
def _fwd_kernel(
    logits_ptr,  # (R, V)
    rows_ptr,  # (R,) int64: their places in T
    labels_ptr,  # (T,)
    loss_ptr,  # (T,) fp32
    lse_ptr,  # (T,) fp32
    R,
    V,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_ptr, row, there, label = _rows(rows_ptr, labels_ptr, logits_ptr, R, V, ROWS)
    top, total = _statistics(row_ptr, there, V, ROWS, BLOCK)
    # A label outside the vocabulary, which is not checked on a GPU, costs NaN.
    own = tl.load(row_ptr + label, mask=(label >= 0) & (label < V), other=float("nan")).to(tl.float32)
    tl.store(loss_ptr + row, (top - own) + tl.log(total), mask=there)
    tl.store(lse_ptr + row, top + tl.log(total), mask=there)


def _chunks(labels: torch.Tensor, ignore_index: int, V: int) -> tuple[torch.Tensor, ...]:
    """Indices of the labelled rows, a chunk at a time."""
    return (labels != ignore_index).nonzero().squeeze(1).split(launch.logits_rows(V))


def _logits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))


def _start(kernel: Any, logits: torch.Tensor, *tensors: torch.Tensor) -> None:
    R, V = logits.shape
    tile = launch.logits(V)
    launch.start(
        kernel, (launch.cdiv(R, tile.rows),), logits, logits, *tensors, R, V,
        ROWS=tile.rows, BLOCK=tile.width, num_warps=tile.warps,
    )  # fmt: skip


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (T, C), weight (V, C), labels (T,) -> loss (T,), lse (T,) fp32; zero for ignored rows."""
    V, dtype = weight.shape[0], torch.promote_types(x.dtype, weight.dtype)
    labels, weight = labels.contiguous(), weight.to(dtype)
    loss, lse = (x.new_zeros(x.shape[0], dtype=torch.float32) for _ in range(2))
    for rows in _chunks(labels, ignore_index, V):
        logits = _logits(x[rows].to(dtype), weight, bias)
        _start(_fwd_kernel, logits, rows, labels, loss, lse)
    return loss, lse


@triton.jit
def _bwd_kernel(
    logits_ptr,  # (R, V): their gradient takes their place
    rows_ptr,  # (R,) int64: their places in T
    labels_ptr,  # (T,)
    dloss_ptr,  # (T,) fp32
    R,
    V,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_ptr, row, there, label = _rows(rows_ptr, labels_ptr, logits_ptr, R, V, ROWS)
    dloss = tl.load(dloss_ptr + row, mask=there, other=0.0).to(tl.float32)[:, None]
    # Not exp(logits - lse): at logits of 1e3 the last place of an fp32 lse is 1e-4.
    top, total = _statistics(row_ptr, there, V, ROWS, BLOCK)
    share = tl.div_rn(1.0, tl.where(there, total, 1.0))[:, None]
    for first in range(0, V, BLOCK):
        v = first + tl.arange(0, BLOCK)
        mask = there[:, None] & (v < V)[None, :]
        logit = tl.load(row_ptr[:, None] + v[None, :], mask=mask, other=0.0).to(tl.float32)
        one = tl.where(v[None, :] == label[:, None], 1.0, 0.0)
        dlogit = dloss * (tl.exp(logit - top[:, None]) * share - one)
        tl.store(row_ptr[:, None] + v[None, :], dlogit.to(logits_ptr.dtype.element_ty), mask=mask)


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
    V, dtype = weight.shape[0], torch.promote_types(x.dtype, weight.dtype)
    labels, dloss, wide = labels.contiguous(), dloss.contiguous(), weight.to(dtype)
    dx = x.new_zeros(x.shape if need_dx else 0)
    dweight = weight.new_zeros(weight.shape if need_dweight else 0)
    dbias = dloss.new_zeros(V if need_dbias else 0)
    for i, rows in enumerate(_chunks(labels, ignore_index, V)):
        kept = x[rows].to(dtype)
        dlogits = _logits(kept, wide, bias)
        _start(_bwd_kernel, dlogits, rows, labels, dloss)
        if need_dx:
            dx[rows] = (dlogits @ wide).to(x.dtype)
        if need_dweight:  # the sum of several chunks is in fp32
            dweight = dlogits.t() @ kept if i == 0 else dweight.float().add_(dlogits.t() @ kept)
        if need_dbias:
            dbias += dlogits.sum(0, dtype=torch.float32)
    return dx, dweight.to(weight.dtype), dbias.to(weight.dtype)
