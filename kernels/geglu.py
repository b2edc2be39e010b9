"""gelu of the first half times the second, exact erf, in fp32. Reference: modernbert_fast/reference/geglu.py.

Forward: reads 2F and writes F elements a token, about 30 flops for each of F. Backward: reads 3F, writes 2F, about 50
flops: gelu is computed again rather than stored.
"""

import torch
import triton
import triton.language as tl

from modernbert_fast.kernels import launch

SQRT_HALF = tl.constexpr(0.5**0.5)
PDF_SCALE = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)


@triton.jit
def _tile(T, F, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows (ROWS, 1) int64, columns (1, COLUMNS) and mask of a program; neighbours share rows."""
    across = tl.cdiv(F, COLUMNS)
    t = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    f = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    return t[:, None], f[None, :], (t < T)[:, None] & (f < F)[None, :]


@triton.jit
def _cdf(a):
    """The share of a normal distribution below a."""
    return 0.5 * (1.0 + tl.erf(a * SQRT_HALF))


@triton.jit
def _fwd_kernel(
    x_ptr,  # (T, 2F)
    y_ptr,  # (T, F)
    stride_xt,
    T,
    F,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    t, f, mask = _tile(T, F, ROWS, COLUMNS)
    a = tl.load(x_ptr + t * stride_xt + f, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + t * stride_xt + F + f, mask=mask, other=0.0).to(tl.float32)
    y = a * _cdf(a) * b
    tl.store(y_ptr + t * F + f, y.to(y_ptr.dtype.element_ty), mask=mask)


def _grid(T: int, F: int) -> tuple[int]:
    return (launch.cdiv(T, launch.GEGLU["ROWS"]) * launch.cdiv(F, launch.GEGLU["COLUMNS"]),)


def forward(x: torch.Tensor) -> torch.Tensor:
    """x (T, 2F) -> (T, F)."""
    x = launch.inner_dense(x)
    T, F = x.shape[0], x.shape[1] // 2
    y = x.new_empty((T, F))
    launch.start(_fwd_kernel, _grid(T, F), x, x, y, x.stride(0), T, F, **launch.GEGLU)
    return y


@triton.jit
def _bwd_kernel(
    dy_ptr,  # (T, F)
    x_ptr,  # (T, 2F)
    dx_ptr,  # (T, 2F)
    stride_dyt,
    stride_xt,
    T,
    F,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    t, f, mask = _tile(T, F, ROWS, COLUMNS)
    a = tl.load(x_ptr + t * stride_xt + f, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + t * stride_xt + F + f, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + t * stride_dyt + f, mask=mask, other=0.0).to(tl.float32)
    cdf = _cdf(a)
    pdf = tl.exp(-0.5 * a * a) * PDF_SCALE
    dtype = dx_ptr.dtype.element_ty
    tl.store(dx_ptr + t * (2 * F) + f, (dy * b * (cdf + a * pdf)).to(dtype), mask=mask)
    tl.store(dx_ptr + t * (2 * F) + F + f, (dy * a * cdf).to(dtype), mask=mask)


def backward(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """dy (T, F), x (T, 2F) -> dx (T, 2F)."""
    dy, x = launch.inner_dense(dy), launch.inner_dense(x)
    T, F = dy.shape
    dx = x.new_empty(x.shape)
    launch.start(_bwd_kernel, _grid(T, F), x, dy, x, dx, dy.stride(0), x.stride(0), T, F, **launch.GEGLU)
    return dx
