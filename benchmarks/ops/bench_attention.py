"""Flops of the two products over the pairs that see one another; bytes of qkv and the output.

The backward multiplies five times where the forward does twice, reads qkv, o and do and writes dqkv.
"""

import functools

import torch
import torch.nn.functional as F
from gpu import attention_rivals
from harness import Case, apart, both

from modernbert_fast.config import SLIDING
from modernbert_fast.testing import problems

H, D, WINDOW = 12, 64, 64
BLOCK = 512  # queries that one call of torch's attention takes along the band
BACKWARD = (2.0, 2.5)  # bytes and flops, of the forward's


def cases(T, dtype, device):
    lengths = (T // 2, T // 4, T // 8, T // 8)
    for window in (-1, WINDOW):
        problem = problems.attention(lengths, H, D, dtype, device, window=window)
        name = f"{'global' if window < 0 else f'window {window}'}, texts of {', '.join(map(str, lengths))}"
        yield from both(name, problem, *cost(lengths, H, D, window, dtype), backward=BACKWARD)


def model_cases(config, lengths, dtype, device):
    """Both kinds of layer: alone with the rotation inside, and without it against rivals that rotate nothing."""
    H, D = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    few = lengths[: max(1, 1024 // lengths[0])]
    for window in (config.window(SLIDING), -1):
        kind = "global" if window < 0 else f"window {window}"
        for rotary in (True, False):
            problem, checked = (
                problems.attention(texts, H, D, dtype, device, window=window, rotary=rotary) for texts in (lengths, few)
            )
            rivals = _none if rotary else functools.partial(attention_rivals.rivals, window=window)
            name = f"attention {kind}{', rotary inside' if rotary else ''}"
            yield from apart(name, problem, checked, *cost(lengths, H, D, window, dtype), BACKWARD, rivals)


def _none(problem):
    return {}


def large_cases(dtype, device):
    """One long text, nothing rotated, against torch's attention: whole, under a band mask, and along the band."""
    yield _one_text(8192, -1, "F.scaled_dot_product_attention", _whole, dtype, device)
    yield _one_text(8192, WINDOW, "a band mask", _under_a_mask, dtype, device)
    for T in (1024, 2048, 4096, 8192, 16384):
        yield _one_text(T, WINDOW, f"calls for {BLOCK} queries", _along_the_band, dtype, device)


def _one_text(T, window, rival, plain, dtype, device):
    problem = problems.attention((T,), H, D, dtype, device, window=window, rotary=False)
    name = f"{'global' if window < 0 else f'window {window}'}, {T} tokens; torch: {rival}"
    return Case(name, problem.but(plain=plain, grads=()), *cost((T,), H, D, window, dtype), large=True)


def _whole(qkv, cu_seqlens, mask=None):
    q, k, v = qkv.permute(1, 2, 0, 3)[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)


def _under_a_mask(qkv, cu_seqlens):
    return _whole(qkv, cu_seqlens, _band(len(qkv), qkv.dtype, qkv.device))


@functools.lru_cache(maxsize=1)  # made outside the clock: the warm-up comes first
def _band(T, dtype, device):
    """0 within the window, -inf beyond, in the dtype that torch's kernel adds without converting."""
    places = torch.arange(T, device=device)
    far = (places[:, None] - places).abs() > WINDOW
    return torch.zeros(T, T, dtype=dtype, device=device).masked_fill_(far, float("-inf"))


def _along_the_band(qkv, cu_seqlens):
    """As anyone would write it who knows about the window: each block of queries meets its own keys only."""
    T = qkv.shape[0]
    outputs = []
    for first in range(0, T, BLOCK):
        start, end = max(first - WINDOW, 0), min(first + BLOCK + WINDOW, T)
        q, (k, v) = qkv[first : first + BLOCK, 0], qkv[start:end, 1:].unbind(1)
        seen = (torch.arange(first, first + len(q))[:, None] - torch.arange(start, end)).abs() <= WINDOW
        rows = (x.transpose(0, 1)[None] for x in (q, k, v))
        outputs.append(F.scaled_dot_product_attention(*rows, attn_mask=seen.to(qkv.device))[0].transpose(0, 1))
    return torch.cat(outputs)


def cost(lengths, H, D, window, dtype):
    """Bytes and flops of the forward."""
    return 4 * sum(lengths) * H * D * dtype.itemsize, 4 * sum(map(functools.partial(pairs, window), lengths)) * H * D


@functools.cache
def pairs(window, length):
    """Queries and keys of a text that see one another."""
    reach = length if window < 0 else min(window, length - 1)
    return length * length if window < 0 else length * (2 * reach + 1) - reach * (reach + 1)
