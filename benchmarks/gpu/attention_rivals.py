"""Attention over packed texts as torch can do it on a GPU: varlen_attn, FlexAttention and the kernels behind SDPA.

Each is a function of the problem's inputs, qkv (T, 3, H, D) and cu_seqlens -> (T, H, D), with masks made outside the
clock. Nobody rotates. One that cannot run says so when it is first called.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import harness
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel

from modernbert_fast.testing import Problem

Attend = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
KERNELS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")


def rivals(problem: Problem, window: int) -> dict[str, Attend]:
    """By name; SDPA takes texts of one length only."""
    lengths = problem.texts
    found: dict[str, Attend] = {
        "varlen_attn": functools.partial(_varlen, max(lengths), window),
        "FlexAttention": functools.partial(_flex, lengths, window),
    }
    if len(set(lengths)) == 1:
        found |= {f"SDPA {kernel}": functools.partial(_sdpa, kernel, lengths[0], window) for kernel in KERNELS}
    return found


def _varlen(longest: int, window: int, qkv: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # not in every torch that we support

    q, k, v = qkv.unbind(1)
    bounds = (cu_seqlens, cu_seqlens, longest, longest)
    return varlen_attn(q, k, v, *bounds, window_size=(window, window)) if window >= 0 else varlen_attn(q, k, v, *bounds)


def _flex(lengths: tuple[int, ...], window: int, qkv: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Texts of one length as a batch, others as one row of documents."""
    one = len(set(lengths)) == 1
    shape = (len(lengths), lengths[0]) if one else (1, sum(lengths))
    q, k, v = qkv.unflatten(0, shape).permute(2, 0, 3, 1, 4)
    mask = block_mask(() if one else lengths, shape[1], window, qkv.device)
    return _compiled_flex()(q, k, v, block_mask=mask).transpose(1, 2).flatten(0, 1)


def _sdpa(kernel: str, length: int, window: int, qkv: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    q, k, v = qkv.unflatten(0, (-1, length)).permute(2, 0, 3, 1, 4)
    mask = None if window < 0 else _band(length, window, qkv.dtype, qkv.device)
    with sdpa_kernel(getattr(SDPBackend, kernel)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(0, 1)


@functools.lru_cache(maxsize=4)
def block_mask(lengths: tuple[int, ...], total: int, window: int, device: torch.device) -> Any:
    """Which keys a query sees: of its document if there are several (`lengths`), within the window if there is one."""
    if not lengths and window < 0:
        return None
    texts = torch.zeros(total, dtype=torch.int32, device=device)
    for text, end in enumerate(itertools.accumulate(lengths[:-1]), 1):
        texts[end:] = text

    def sees(b: Any, h: Any, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        near = (i - j).abs() <= window if window >= 0 else i >= 0
        return near & (texts[i] == texts[j]) if lengths else near

    return flex_attention.create_block_mask(sees, None, None, total, total, device=device, _compile=total > 16384)


@functools.cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention.flex_attention, backend=harness.COMPILER, dynamic=False)


@functools.lru_cache(maxsize=1)
def _band(length: int, window: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """0 within the window, -inf beyond."""
    places = torch.arange(length, device=device)
    far = (places[:, None] - places).abs() > window
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(far, float("-inf"))
