"""How well a pre-trained model does on text that it has not seen: masked tokens, and the order of sentences."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import modernbert_fast as mf
from modernbert_fast.training.dataset import TextDataset
from modernbert_fast.training.masking import MaskedLMCollator
from modernbert_fast.training.modeling import ModernBertForPreTraining
from modernbert_fast.training.pairs import PairDataset, pair_pieces
from modernbert_fast.training.sampler import pieces
from modernbert_fast.training.store import TokenStore, build_store

MAX_LENGTH, TEXTS_AT_A_TIME = 256, 64
MASKED = 0.3  # as in training


@torch.no_grad()
def masked_accuracy(model: Any, store: TokenStore, guess: int) -> dict[str, float]:
    """Accuracy and perplexity at masked tokens of all pieces of a store, and the accuracy of one and the same guess."""
    dataset = TextDataset(store, pieces(store.lengths, MAX_LENGTH))
    collator = MaskedLMCollator.from_store(store, rate=MASKED)
    hits, guessed, count, loss = 0, 0, 0, 0.0
    for features in _in_groups(dataset[piece, 0] for piece in range(len(dataset))):
        batch = collator(features)
        labels = batch.pop("labels")[0]
        logits = model(**batch).prediction_logits[0, labels >= 0]
        labels = labels[labels >= 0]
        loss += float(torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum"))
        hits += int((logits.argmax(-1) == labels).sum())
        guessed += int((labels == guess).sum())
        count += len(labels)
    return {
        "masked_tokens": count,
        "masked_accuracy": hits / count,
        "unigram_accuracy": guessed / count,
        "perplexity": math.exp(loss / count),
    }


@torch.no_grad()
def order_accuracy(model: Any, store: TokenStore) -> dict[str, float]:
    """Accuracy on pairs of which nothing is masked: every piece once in the order of its document, once swapped."""
    dataset = PairDataset(store, pair_pieces(store, MAX_LENGTH))
    collator = MaskedLMCollator.from_store(store, rate=0.0)
    hits = [0, 0]
    for features in _in_groups(_in_order(dataset, piece, label) for piece in range(len(dataset)) for label in (0, 1)):
        batch = collator(features)
        labels = batch.pop("sentence_order_label")
        del batch["labels"]
        right = model(**batch).sop_logits.argmax(-1) == labels
        for label in (0, 1):
            hits[label] += int(right[labels == label].sum())
    return {
        "pairs": 2 * len(dataset),
        "order_accuracy": sum(hits) / (2 * len(dataset)),
        "accuracy_in_order": hits[0] / len(dataset),
        "accuracy_swapped": hits[1] / len(dataset),
    }


def commonest(texts: Iterable[str], tokenizer: Any) -> int:
    """The most frequent token."""
    counts = np.zeros(len(tokenizer), np.int64)
    for chunk in _in_groups(texts):
        for ids in tokenizer(chunk, add_special_tokens=False)["input_ids"]:
            counts += np.bincount(ids, minlength=len(counts))
    return int(counts.argmax())


def evaluate(folder: Path, documents: Sequence[str], guess: int) -> dict[str, float]:
    """All figures of a ModernBertForPreTraining of two ways, in fp32.

    Args:
        folder: the model and its tokenizer.
        documents: that it has not seen.
        guess: the token that the unigram baseline always says, as commonest() finds it in the text of the training.
    """
    model = ModernBertForPreTraining.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    mf.accelerate(model)
    with tempfile.TemporaryDirectory() as scratch:
        store = build_store(documents, folder, Path(scratch) / "store")
        return {"documents": len(store), **masked_accuracy(model, store, guess), **order_accuracy(model, store)}


def _in_order(dataset: PairDataset, piece: int, label: int) -> dict[str, Any]:
    """A pair of this label, from the first epoch that draws it."""
    drawn = (dataset[piece, epoch] for epoch in itertools.count())
    return next(feature for feature in drawn if feature["sentence_order_label"] == label)


def _in_groups(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    return iter(lambda: list(itertools.islice(iterator, TEXTS_AT_A_TIME)), [])
