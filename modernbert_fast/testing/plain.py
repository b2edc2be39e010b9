"""Each op as anyone would write it in torch, in the dtype of its inputs: the yardstick and the baseline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from modernbert_fast import dispatch
from modernbert_fast.ops.encoder_layer import Weights


def plan(mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """mask (B, S) -> indices (T,), cu_seqlens (B + 1,), positions (T,)."""
    indices = mask.flatten().nonzero().squeeze(1)
    cu_seqlens = F.pad(mask.ne(0).sum(1).cumsum(0), (1, 0)).int()
    columns = [row.nonzero().squeeze(1) for row in mask]
    positions = [c - c[0] for c in columns if c.numel()]
    return indices, cu_seqlens, (torch.cat(positions) if positions else indices).int()


def unpad(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return x[indices.long()]


def pad(x: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.zeros(rows, *x.shape[1:], dtype=x.dtype, device=x.device).index_put((indices.long(),), x)


def tiles(cu_seqlens: torch.Tensor, total: int, rows: int) -> torch.Tensor:
    """cu_seqlens (B + 1,) -> (total // rows + B, 2)."""
    lengths = cu_seqlens.diff().tolist()
    used = [(text, first) for text, length in enumerate(lengths) for first in range(0, length, rows)]
    unused = [(-1, 0)] * (total // rows + len(lengths) - len(used))
    return torch.tensor(used + unused, dtype=torch.int32, device=cu_seqlens.device).view(-1, 2)


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, eps: float = 1e-5
) -> torch.Tensor:
    """x (..., C); in fp32 when the weight is wider than x, as autocast does."""
    dtype = x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype)
    weight, bias = (None if t is None else t.to(dtype) for t in (weight, bias))
    return F.layer_norm(x.to(dtype), x.shape[-1:], weight, bias, eps).to(x.dtype)


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + residual
    return layer_norm(total, weight, bias, eps), total


def embed_layer_norm(
    ids: torch.Tensor,
    table: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    padding_idx: int | None = None,
) -> torch.Tensor:
    return layer_norm(F.embedding(ids, table, padding_idx), weight, bias, eps)


def rotate(x: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (T, ..., D); the tables rounded to x's dtype, as transformers does."""
    shape = (x.shape[0], *(1 for _ in x.shape[1:-1]), x.shape[-1])
    cos, sin = (torch.cat([t, t], 1)[positions.long()].view(shape).to(x.dtype) for t in (cos, sin))
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def rope(qkv: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return torch.cat([rotate(qkv[:, :2], positions, cos, sin), qkv[:, 2:]], dim=1)


def attention(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    window: int,
    positions: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
    attended: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """qkv (T, 3, H, D) -> (T, H, D), torch's own attention text by text."""
    rotated = qkv if positions is None or cos is None or sin is None else rope(qkv, positions, cos, sin)
    outputs = [torch.zeros_like(qkv[:0, 0])]
    for start, end in texts(cu_seqlens):
        q, k, v = rotated[start:end].permute(1, 2, 0, 3)
        place = torch.arange(end - start, device=qkv.device) if columns is None else columns[start:end]
        seen = None if window < 0 else (place[:, None] - place[None, :]).abs() <= window
        if attended is not None:
            keys = attended[start:end].expand(end - start, -1)
            seen = keys if seen is None else seen & keys
        o = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen, scale=scale)[0]
        outputs.append(o.transpose(0, 1))
    return torch.cat(outputs)


def geglu(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return F.gelu(a) * b


def linear_geglu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return geglu(F.linear(x, weight, bias))


def encoder_layer(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weights: Weights,
    head_dim: int,
    cu_seqlens: torch.Tensor,
    window: int,
    **rotary: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual (T, C) -> the output of the MLP (T, C) and the residual it is to be added to."""
    w = weights
    normed = stream = x if residual is None else x + residual
    if w.attn_norm is not None:
        normed = layer_norm(stream, w.attn_norm, w.attn_norm_bias, w.attn_norm_eps)
    qkv = F.linear(normed, w.Wqkv, w.Wqkv_bias).unflatten(1, (3, -1, head_dim))
    attended = F.linear(attention(qkv, cu_seqlens, window, **rotary).flatten(1), w.attn_Wo, w.attn_Wo_bias)
    normed, stream = add_layer_norm(attended, stream, w.mlp_norm, w.mlp_norm_bias, w.mlp_norm_eps)
    return F.linear(linear_geglu(normed, w.Wi, w.Wi_bias), w.mlp_Wo, w.mlp_Wo_bias), stream


def pooling(x: torch.Tensor, cu_seqlens: torch.Tensor, mode: str, normalize: bool) -> torch.Tensor:
    """x (T, C) -> (B, C)."""
    bounds = cu_seqlens.tolist()
    rows = [x.new_zeros(0, x.shape[1])]
    for start, end in zip(bounds, bounds[1:], strict=False):
        text = x[start:end]
        pooled = x.new_zeros(x.shape[1]) if start == end else text[0] if mode == "cls" else text.mean(0)
        rows.append(pooled[None])
    y = torch.cat(rows)
    return F.normalize(y, dim=1) if normalize else y


def maxsim(
    q: torch.Tensor, d: torch.Tensor, cu_queries: torch.Tensor, cu_documents: torch.Tensor, pairwise: bool
) -> torch.Tensor:
    """q (Tq, D), d (Td, D) -> (Bq, Bd) or (B,), products and sums in fp32 as every library scores."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    queries = [q[a:b] for a, b in texts(cu_queries, empty=True)]
    documents = [d[a:b] for a, b in texts(cu_documents, empty=True)]

    def score(query: torch.Tensor, document: torch.Tensor) -> torch.Tensor:
        if len(query) and not len(document):
            return query.new_tensor(float("-inf"), dtype=dtype)
        return _products(query, document).amax(1).sum() if len(query) else query.sum(dtype=dtype)

    if pairwise:
        scores = [score(*pair) for pair in zip(queries, documents, strict=True)]
        return torch.stack(scores) if scores else q.new_zeros(0, dtype=dtype)
    scores = [score(query, document) for query in queries for document in documents]
    flat = torch.stack(scores) if scores else q.new_zeros(0, dtype=dtype)
    return flat.view(len(queries), len(documents))


def decompress(
    codes: torch.Tensor, nearest: torch.Tensor, centroids: torch.Tensor, levels: torch.Tensor
) -> torch.Tensor:
    element = torch.arange(centroids.shape[1], device=codes.device)
    half = codes.shape[1]
    shift = torch.where(element < half, 1, 16)
    level = codes.int()[:, element % max(half, 1)] // shift % 16
    near = nearest.int()[:, None]
    return ((centroids.int()[near, element] + levels.int()[near, level] + 128) % 256 - 128).char()


def _products(q: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """q (M, D), d (N, D) -> q @ d.T in fp32, as the device multiplies operands of their dtype."""
    if not dispatch.host_readable(q) and q.dtype == d.dtype and q.dtype in (torch.float16, torch.bfloat16):
        return _TensorCores.apply(q, d)
    dtype = torch.promote_types(q.dtype, torch.float32)
    return q.to(dtype) @ d.to(dtype).T


class _TensorCores(torch.autograd.Function):
    """q (M, D), d (N, D), halves on a GPU -> q @ d.T in fp32, and its gradients by fp32 products.

    Tensor cores cut off what they add, so their product of halves is not that of the same numbers in fp32. torch keeps
    the fp32 results of such a product if asked, without gradients. Zeros around the operands change no sum, and make
    the product so large that the library neither splits its sums nor does without tensor cores.
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(q, d)
        return torch.mm(_padded(q), _padded(d).T, out_dtype=torch.float32)[: len(q), : len(d)]

    @staticmethod
    def backward(ctx: Any, dproducts: torch.Tensor) -> Any:
        q, d = ctx.saved_tensors
        return (dproducts @ d.float()).to(q.dtype), (dproducts.T @ q.float()).to(d.dtype)


def _padded(x: torch.Tensor) -> torch.Tensor:
    """x (T, D) with zeros up to 2,048 rows and to whole 64 columns."""
    return F.pad(x, (0, -x.shape[1] % 64, 0, max(2048 - len(x), 0)))


def ranking(
    scores: torch.Tensor,
    cu_documents: torch.Tensor,
    k: int,
    scales: torch.Tensor | None = None,
    allowed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """scores (B, N) -> best (B, k) fp32, documents (B, k); a sort that leaves equals in their order."""
    scaled = scores.double() * (1 if scales is None else scales.double())
    fit = cu_documents.diff() > 0 if allowed is None else (cu_documents.diff() > 0) & allowed
    rows = []
    for row in scaled.float().tolist():
        found = [j for j, here in enumerate(fit.tolist()) if here and row[j] > float("-inf")]
        found = sorted(found, key=lambda j: -row[j])[:k]
        rows.append([(row[j] + 0.0, j) for j in found] + [(float("-inf"), -1)] * (k - len(found)))
    pairs = torch.tensor(rows, dtype=torch.float64, device=scores.device).view(len(scores), k, 2)
    return pairs[..., 0].float(), pairs[..., 1].long()


def cross_entropy(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, ignore_index: int = -100
) -> torch.Tensor:
    """x (T, C), weight (V, C) -> (T,): logits in x's dtype, then fp32, as transformers does."""
    logits = F.linear(x, weight, bias)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, labels.long(), reduction="none", ignore_index=ignore_index)


def texts(cu_seqlens: torch.Tensor, empty: bool = False) -> Iterator[tuple[int, int]]:
    """(first row, end) of each text; empty texts too when asked."""
    bounds = cu_seqlens.tolist()
    yield from ((a, b) for a, b in zip(bounds, bounds[1:], strict=False) if empty or a < b)
