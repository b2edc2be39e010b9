"""GeGLU in plain torch: the definition of right for ops/geglu.py."""

from __future__ import annotations

import math

import torch


def _halves(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)


def _cdf(a: torch.Tensor) -> torch.Tensor:
    """The share of a normal distribution below a. Not F.gelu: with AVX-512 that makes NaN of infinity."""
    return 0.5 * (1 + torch.erf(a * math.sqrt(0.5)))


def forward(x: torch.Tensor) -> torch.Tensor:
    """x (T, 2F) -> (T, F)."""
    a, b = _halves(x)
    return (a * _cdf(a) * b).to(x.dtype).contiguous()


def backward(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """dy (T, F), x (T, 2F) -> dx (T, 2F)."""
    a, b = _halves(x)
    dy = dy.to(a.dtype)
    cdf = _cdf(a)
    pdf = torch.exp(-0.5 * a.square()) / math.sqrt(2 * math.pi)
    return torch.cat([dy * b * (cdf + a * pdf), dy * a * cdf], dim=-1).to(x.dtype)
