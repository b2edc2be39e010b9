"""A linear layer in plain torch, half precision computed in fp32: the definition of right for ops/linear.py.

It is also the fastest choice on CPUs that cannot multiply in half precision (docs/decisions/0003).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from modernbert_fast.reference import geglu


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x (T, K), weight (N, K) -> (T, N)."""
    return F.linear(_wide(x), _wide(weight), None if bias is None else _wide(bias)).to(x.dtype)


def forward_geglu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x (T, K), weight (2F, K) -> (T, F)."""
    return geglu.forward(forward(x, weight, bias))


def backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, need_dx: bool, need_dweight: bool, need_dbias: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dy (T, N) -> dx (T, K), dweight (N, K), dbias (N,); (0,) for each that is not needed."""
    dy = _wide(dy)
    dx = dy @ _wide(weight) if need_dx else dy.new_empty(0)
    dweight = dy.t() @ _wide(x) if need_dweight else dy.new_empty(0)
    dbias = dy.sum(0) if need_dbias else dy.new_empty(0)
    return dx.to(x.dtype), dweight.to(x.dtype), dbias.to(x.dtype)
