"""The linear layer by torch's own product (cuBLASLt, oneDNN, MKL), in its tensors' dtype. As reference/linear.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x (T, K), weight (N, K) -> (T, N)."""
    return F.linear(x, weight, bias)


def forward_geglu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x (T, K), weight (2F, K) -> (T, F)."""
    return torch.ops.modernbert_fast.geglu_forward(forward(x, weight, bias))


def backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, need_dx: bool, need_dweight: bool, need_dbias: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dy (T, N) -> dx (T, K), dweight (N, K), dbias (N,); (0,) for each that is not needed."""
    dy = dy.to(x.dtype)
    dx = dy @ weight if need_dx else x.new_empty(0)
    dweight = dy.t() @ x if need_dweight else x.new_empty(0)
    dbias = dy.sum(0) if need_dbias else x.new_empty(0)
    return dx, dweight, dbias
