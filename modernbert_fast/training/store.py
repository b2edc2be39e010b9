"""Documents tokenised once into memory-mapped shards, which many processes read at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PathLike = str | os.PathLike[str]


def build_store(
    documents: Iterable[str],
    tokenizer_folder: PathLike,
    folder: PathLike,
    *,
    workers: int = 0,
    sentences: bool = True,
    shard_tokens: int = 1 << 27,
) -> TokenStore:
    """Tokenises documents in their order and writes them to a new folder, which appears when all is done.

    Documents without a token (empty, or only white space) are skipped and counted. Text that looks like a special
    token is text. The tokenizer is saved beside the shards, in `tokenizer/`.

    Args:
        documents: texts.
        tokenizer_folder: what AutoTokenizer loads; it must know [CLS], [SEP] and [MASK].
        folder: must not exist yet, or be empty.
        workers: processes that tokenise; 0 does it in this one. The result does not depend on it.
        sentences: whether to record where sentences begin.
        shard_tokens: a shard ends with the document that reaches this.

    Raises:
        ValueError: when a document is not valid Unicode, there is none, or the tokenizer does not fit.
        OSError: when files cannot be written; FileExistsError when the folder is not empty.
    """
    raise NotImplementedError


class TokenStore:
    """Read access to what build_store wrote. Pickles as its path, so that data workers map the same pages.

    Attributes:
        folder: where it lies; `folder / "tokenizer"` loads with AutoTokenizer.
        lengths: (N,) int64, tokens of each document, without special tokens.
        vocab_size: ids are below it.
        cls_id, sep_id, mask_id: int; special_ids: all special ids, a tuple.
        skipped: documents that had no token.
        has_sentences: whether sentence starts were recorded.

    Raises:
        OSError: when a file is missing.
        ValueError: when a file is not what the manifest says, named with what is wrong.
    """

    folder: Path
    lengths: NDArray[np.int64]
    vocab_size: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]
    skipped: int
    has_sentences: bool

    def __init__(self, folder: PathLike) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        """Documents."""
        raise NotImplementedError

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Ids start .. stop of a document, (n,) int64, no special tokens."""
        raise NotImplementedError

    def sentences(self, document: int) -> NDArray[np.int64]:
        """Tokens at which the sentences of a document begin, rising from 0; (S,).

        Raises:
            ValueError: when the store was built without sentences.
        """
        raise NotImplementedError
