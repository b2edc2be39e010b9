"""Attention over packed texts as torch can do it on a GPU: varlen_attn, FlexAttention and the kernels behind SDPA.

Masks are made outside the clock, and nobody rotates. What cannot run here says so when it is first called.
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

Attend = Callable[..., torch.Tensor]  # q, k, v (T, H, D), cu_seqlens -> (T, H, D)
KERNELS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
VARLEN, FLEX = "varlen_attn", "FlexAttention"


def rivals(problem: Problem, window: int) -> dict[str, Callable[..., torch.Tensor]]:
    """By name, functions of the problem's inputs qkv (T, 3, H, D) and cu_seqlens."""
    attends = {VARLEN: varlen(problem.texts, window), FLEX: functools.partial(_compiled_flex, problem.texts, window)}
    if len(set(problem.texts)) == 1:  # SDPA takes no others
        attends |= {f"SDPA {kernel}": functools.partial(_sdpa, kernel, problem.texts[0], window) for kernel in KERNELS}
    return {name: functools.partial(_of_qkv, attend) for name, attend in attends.items()}


def varlen(lengths: tuple[int, ...], window: int) -> Attend:
    """torch.nn.attention.varlen, which is FlashAttention."""
    longest = max(lengths)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn  # not in every torch that we support

        reach = {"window_size": (window, window)} if window >= 0 else {}
        return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **reach)

    return attend


def flex(lengths: tuple[int, ...], window: int, device: torch.device) -> Attend:
    """To be compiled: texts of one length as a batch, others as one row of documents."""
    one = len(set(lengths)) == 1
    shape = (len(lengths), lengths[0]) if one else (1, sum(lengths))
    mask = _block_mask(() if one else lengths, shape[1], window, device)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in (q, k, v))
        return flex_attention.flex_attention(q, k, v, block_mask=mask).transpose(1, 2).flatten(0, 1)

    return attend


def _of_qkv(attend: Attend, qkv: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    return attend(*qkv.unbind(1), cu_seqlens)


def _compiled_flex(lengths: tuple[int, ...], window: int, q: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    return _flex_for(lengths, window, q.device)(q, *rest)


@functools.lru_cache(maxsize=2)
def _flex_for(lengths: tuple[int, ...], window: int, device: torch.device) -> Attend:
    return torch.compile(flex(lengths, window, device), backend=harness.COMPILER, dynamic=False)


def _sdpa(kernel: str, length: int, window: int, *qkv_and_bounds: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in qkv_and_bounds[:3])
    mask = None if window < 0 else _band(length, window, q.dtype, q.device)
    with sdpa_kernel(getattr(SDPBackend, kernel)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(0, 1)


def _block_mask(lengths: tuple[int, ...], total: int, window: int, device: torch.device) -> Any:
    """What a query sees: keys of its document, if there are several (`lengths`), within the window, if there is one."""
    if not lengths and window < 0:
        return None
    texts = torch.zeros(total, dtype=torch.int32, device=device)
    for text, start in enumerate(itertools.accumulate(lengths[:-1]), 1):
        texts[start:] = text

    def sees(b: Any, h: Any, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        near = (i - j).abs() <= window if window >= 0 else i >= 0
        return near & (texts[i] == texts[j]) if lengths else near

    return flex_attention.create_block_mask(sees, None, None, total, total, device=device, _compile=total > 16384)


@functools.lru_cache(maxsize=1)
def _band(length: int, window: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """0 within the window, -inf beyond."""
    places = torch.arange(length, device=device)
    far = (places[:, None] - places).abs() > window
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(far, float("-inf"))
