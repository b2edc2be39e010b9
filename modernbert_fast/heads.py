"""Heads on packed rows, for our modules and transformers' alike: only the rows that count meet a head."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from modernbert_fast import encoder, modules, ops
from modernbert_fast.batch import PackedBatch

IGNORE = -100

_KNOWN_HEADS = (
    "modernbert_fast.model.PredictionHead",
    "transformers.models.modernbert.modeling_modernbert.ModernBertPredictionHead",
)


def predict(head: Any, x: torch.Tensor) -> torch.Tensor:
    """The prediction head: dense, activation, norm. (T, C) -> (T, C)."""
    return encoder.norm(head.norm, head.act(encoder.project(head.dense, x)))


def _apply(head: Any, x: torch.Tensor) -> torch.Tensor:
    """A prediction head on rows (T, C); called as a module where it is hooked, sharded or replaced."""
    fused = modules.class_path(head) in _KNOWN_HEADS and modules.is_untouched(head)
    return predict(head, x) if fused else head(x)


def vocabulary_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Masked language model: hidden (T, C) -> logits (T, V)."""
    return encoder.project(model.decoder, _apply(model.head, hidden))


def class_logits(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """Classification of rows (pooled texts or tokens): (N, C) -> (N, num_labels)."""
    return encoder.project(model.classifier, model.drop(_apply(model.head, rows)))


def pooled_logits(model: Any, hidden: torch.Tensor, batch: PackedBatch, mode: str) -> torch.Tensor:
    """Classification of texts: hidden (T, C) -> (B, num_labels), one row of `mode` "cls" or "mean" a text."""
    return class_logits(model, ops.pooling(hidden, batch.cu_seqlens, mode))


def order_logits(model: Any, hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Sentence order of texts by their first rows: hidden (T, C) -> (B, ways)."""
    rows = ops.pooling(hidden, batch.cu_seqlens, "cls")
    return encoder.project(model.order_classifier, model.drop(_apply(model.order_head, rows)))


def masked_lm_loss(
    model: Any,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    num_items: torch.Tensor | int | None = None,
    ignore_index: int = IGNORE,
) -> torch.Tensor:
    """Loss of the labelled rows, which alone meet the head and the vocabulary; no logits are stored.

    Args:
        model: has head and decoder; a plain decoder is read, any other is called.
        hidden: (T, C), labels: (T,).
        num_items: divides the sum; the number of labelled rows when None.

    Returns:
        Scalar fp32; 0 with zero gradients when nothing is labelled, where transformers gives NaN.
    """
    labelled = (labels != ignore_index).nonzero().squeeze(1)
    rows = _apply(model.head, hidden.index_select(0, labelled))
    kept = labels.index_select(0, labelled)
    decoder = model.decoder
    if modules.is_plain(decoder, nn.Linear):
        losses = ops.cross_entropy(rows, decoder.weight, decoder.bias, kept, ignore_index)
    else:
        losses = F.cross_entropy(decoder(rows).float(), kept, reduction="none")
    return losses.sum() / at_least_one(labelled.numel() if num_items is None else num_items)


def rows_loss(logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None = None) -> torch.Tensor:
    """Cross entropy of logits (N, K) with labels (N,), fp32, mean over labelled rows or sum over `num_items`."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
    return total / at_least_one((labels != IGNORE).sum() if num_items is None else num_items)


def order_loss(
    logits: torch.Tensor,
    order: torch.Tensor,
    num_texts: torch.Tensor | int | None = None,
    labels: torch.Tensor | None = None,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Loss of sentence order: logits (texts, ways), order (texts,).

    Args:
        num_texts: divides the sum. Without it this is the mean over texts, times what the labelled ones of the tokens'
            `labels` are of `num_items`, where both are given: micro-batches of a step then sum to a weighted mean.
    """
    loss = rows_loss(logits, order, num_texts)
    if num_texts is None and num_items is not None and labels is not None:
        loss = loss * ((labels != IGNORE).sum() / at_least_one(num_items))
    return loss


def at_least_one(count: torch.Tensor | int) -> torch.Tensor | int:
    """A divisor of a sum that has no terms when there is nothing to count."""
    return count.clamp_min(1) if isinstance(count, torch.Tensor) else max(count, 1)


def text_loss(logits: torch.Tensor, labels: torch.Tensor, problem_type: str, num_labels: int) -> torch.Tensor:
    """Loss of text classification by transformers' problem types; logits (B, num_labels)."""
    if problem_type == "regression":
        return F.mse_loss(logits.squeeze(), labels.squeeze()) if num_labels == 1 else F.mse_loss(logits, labels)
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits.view(-1, num_labels), labels.view(-1))
    return F.binary_cross_entropy_with_logits(logits, labels)


def problem_type(labels: torch.Tensor, num_labels: int) -> str:
    """What transformers concludes from the labels when the config does not say."""
    if num_labels == 1:
        return "regression"
    if labels.dtype in (torch.long, torch.int):
        return "single_label_classification"
    return "multi_label_classification"


def span_loss(
    start: torch.Tensor, end: torch.Tensor, start_positions: torch.Tensor, end_positions: torch.Tensor
) -> torch.Tensor:
    """Question answering: logits (B, S), -inf where no token is; positions beyond S cost nothing.

    Unlike transformers, padding takes no part in the softmax, and a span that lies on padding costs nothing.
    """
    S = start.shape[1]
    losses = []
    for logits, positions in ((start, start_positions), (end, end_positions)):
        positions = positions.view(-1).clamp(0, S).to(logits.device)
        target = F.pad(logits, (0, 1)).gather(1, positions[:, None]).squeeze(1)
        ignored = torch.where(target == float("-inf"), S, positions)
        total = F.cross_entropy(logits.float(), ignored, ignore_index=S, reduction="sum")
        losses.append(total / (ignored != S).sum().clamp_min(1))
    return (losses[0] + losses[1]) / 2
