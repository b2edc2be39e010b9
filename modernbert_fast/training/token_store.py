"""Read access to documents that were tokenised once into memory-mapped shards (store.py writes them).

A store is a folder: manifest.json, tokenizer/, and for each shard three arrays, NNNNN.tokens.npy (T,) uint16 or uint32
ids without special tokens, NNNNN.documents.npy (N + 1,) uint32 bounds of documents, and where sentences were recorded
NNNNN.sentences.npy (S,) uint32 tokens at which they begin.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modernbert_fast import untrusted

PathLike = str | os.PathLike[str]

FORMAT, VERSION = "modernbert_fast tokens", 1
MANIFEST, TOKENIZER = "manifest.json", "tokenizer"
MAX_IDS = 2**32


def id_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The smallest that holds every id."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


class TokenStore:
    """A folder of tokenised documents. Pickles as its path, so that data workers map the same pages.

    Attributes:
        folder: where it lies; `folder / "tokenizer"` loads with AutoTokenizer.
        lengths: (N,) int64, tokens of each document, without special tokens.
        vocab_size: ids are below it.
        cls_id, sep_id, mask_id: int; special_ids: all special ids, a tuple.
        skipped: documents that had no token when the store was built.
        has_sentences: whether sentence starts were recorded.

    Raises:
        OSError: when a file is missing.
        ValueError: when a file is not what the manifest says, named with what is wrong.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        manifest = _manifest(self.folder / MANIFEST)
        self.vocab_size: int = manifest["vocab_size"]
        self.cls_id: int = manifest["cls_id"]
        self.sep_id: int = manifest["sep_id"]
        self.mask_id: int = manifest["mask_id"]
        self.special_ids: tuple[int, ...] = tuple(manifest["special_ids"])
        self.skipped: int = manifest["skipped"]
        self.has_sentences: bool = manifest["sentences"]
        dtype = id_dtype(self.vocab_size)
        self._shards = [
            _Shard(self.folder, number, shard, dtype, self.has_sentences)
            for number, shard in enumerate(manifest["shards"])
        ]
        self._first = np.cumsum([0, *(shard.bounds.size - 1 for shard in self._shards)])  # document of each shard
        self.lengths: NDArray[np.int64] = np.concatenate([np.diff(shard.bounds) for shard in self._shards])

    def __reduce__(self) -> tuple[Callable[[Path], TokenStore], tuple[Path]]:
        return TokenStore, (self.folder,)

    def __len__(self) -> int:
        """Documents."""
        return self.lengths.size

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Ids start .. stop of a document, (n,) int64, no special tokens.

        Raises:
            IndexError: when there is no such document, or it has no such tokens.
            ValueError: when an id is not below vocab_size.
        """
        shard, begin, end = self._find(document)
        stop = end - begin if stop is None else stop
        if not 0 <= start <= stop <= end - begin:
            raise IndexError(f"document {document} has {end - begin} tokens, not {start} to {stop}")
        ids = shard.tokens[begin + start : begin + stop].astype(np.int64)
        if ids.size and ids.max() >= self.vocab_size:
            raise ValueError(f"{shard.path('tokens')}: id {ids.max()} in document {document}, of {self.vocab_size}")
        return ids

    def sentences(self, document: int) -> NDArray[np.int64]:
        """Tokens at which the sentences of a document begin, rising from 0; (S,).

        Raises:
            IndexError: when there is no such document.
            ValueError: when the store was built without sentences, or they are damaged.
        """
        if not self.has_sentences:
            raise ValueError(f"{self.folder}: built without sentences")
        shard, begin, end = self._find(document)
        first, last = np.searchsorted(shard.sentences, np.array([begin, end], shard.sentences.dtype))
        starts = shard.sentences[first:last].astype(np.int64) - begin
        if not starts.size or starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= end - begin:
            raise ValueError(f"{shard.path('sentences')}: damaged at document {document}")
        return starts

    def _find(self, document: int) -> tuple[_Shard, int, int]:
        """The shard of a document, and its bounds there."""
        if not 0 <= document < len(self):
            raise IndexError(f"no document {document} among {len(self)}")
        number = int(np.searchsorted(self._first, document, side="right")) - 1
        shard, within = self._shards[number], document - int(self._first[number])
        return shard, int(shard.bounds[within]), int(shard.bounds[within + 1])


class _Shard:
    """The arrays of one shard, checked as far as their bounds go; ids and sentences are checked as they are read."""

    def __init__(self, folder: Path, number: int, counts: dict[str, int], dtype: type, with_sentences: bool) -> None:
        self.folder, self.number = folder, number
        self.tokens = self._map("tokens", dtype, counts["tokens"])
        self.bounds = self._map("documents", np.uint32, counts["documents"] + 1).astype(np.int64)
        if self.bounds[0] != 0 or self.bounds[-1] != self.tokens.size or (np.diff(self.bounds) <= 0).any():
            raise ValueError(f"{self.path('documents')}: damaged bounds of documents")
        self.sentences = self._map("sentences", np.uint32, counts["sentences"]) if with_sentences else self.bounds[:0]

    def path(self, name: str) -> Path:
        return shard_path(self.folder, self.number, name)

    def _map(self, name: str, dtype: type, size: int) -> NDArray[Any]:
        path = self.path(name)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path}: not a whole array ({error})") from error
        if array.dtype != dtype or array.shape != (size,):
            expected = f"({size},) {np.dtype(dtype)}"
            raise ValueError(f"{path}: {array.shape} {array.dtype}, the manifest says {expected}")
        if path.stat().st_size != array.offset + array.nbytes:
            raise ValueError(f"{path}: {path.stat().st_size} bytes, expected {array.offset + array.nbytes}")
        return np.asarray(array)  # the same pages, without the slow slices of np.memmap


def shard_path(folder: Path, number: int, name: str) -> Path:
    return folder / f"{number:05}.{name}.npy"


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest, every value checked."""
    manifest = untrusted.read_json(path)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: not the manifest of a token store")
    if manifest.get("version") != VERSION:
        raise ValueError(f"{path}: version {manifest.get('version')!r}, this package reads {VERSION}")
    try:
        vocab_size = untrusted.integer("vocab_size", manifest.get("vocab_size"), 1, MAX_IDS)
        for key in ("cls_id", "sep_id", "mask_id"):
            untrusted.integer(key, manifest.get(key), 0, vocab_size - 1)
        for value in untrusted.sequence("special_ids", manifest.get("special_ids")):
            untrusted.integer("special_ids", value, 0, vocab_size - 1)
        untrusted.integer("skipped", manifest.get("skipped"), 0, 2**62)
        if not isinstance(manifest.get("sentences"), bool):
            untrusted.refuse("sentences", "true or false", manifest.get("sentences"))
        shards = untrusted.sequence("shards", manifest.get("shards"))
        if not shards:
            untrusted.refuse("shards", "at least one", shards)
        for shard in shards:
            for key in ("documents", "tokens", "sentences"):
                untrusted.integer(key, untrusted.mapping("shards", shard).get(key), key != "sentences", 2**32 - 1)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return manifest
