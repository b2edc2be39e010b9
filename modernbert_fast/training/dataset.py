"""Pieces of documents as features: [CLS] text [SEP]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from modernbert_fast.training.sampler import SPECIAL_TOKENS, Item
from modernbert_fast.training.token_store import TokenStore


class TextDataset:
    """One feature a piece: `input_ids` (n,) int64 with [CLS] and [SEP], `key` an int for each piece and epoch.

    Args:
        store: the tokens.
        pieces: (M, 3) int64 document, start, stop, from sampler.pieces.
    """

    def __init__(self, store: TokenStore, pieces: NDArray[np.int64]) -> None:
        self.store = store
        self.pieces = pieces
        self.lengths = pieces[:, 2] - pieces[:, 1] + SPECIAL_TOKENS

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, item: Item) -> dict[str, Any]:
        piece, epoch = item
        document, start, stop = self.pieces[piece].tolist()
        ids = np.empty(stop - start + SPECIAL_TOKENS, np.int64)
        ids[0], ids[-1] = self.store.cls_id, self.store.sep_id
        ids[1:-1] = self.store.tokens(document, start, stop)
        return {"input_ids": ids, "key": epoch * len(self) + piece}
