"""Tokenises documents once into the shards that a TokenStore reads."""

from __future__ import annotations

import functools
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modernbert_fast import durable
from modernbert_fast.training.sentences import sentence_starts
from modernbert_fast.training.token_store import (
    FORMAT,
    MANIFEST,
    TOKENIZER,
    VERSION,
    PathLike,
    TokenStore,
    id_dtype,
    shard_path,
)

__all__ = ["TokenStore", "build_store"]

CHUNK_TEXTS, CHUNK_CHARACTERS = 256, 1 << 20  # what is tokenised at a time, at most


def build_store(
    documents: Iterable[str],
    tokenizer_folder: PathLike,
    folder: PathLike,
    *,
    workers: int = 0,
    sentences: bool = True,
    shard_tokens: int = 1 << 26,
) -> TokenStore:
    """Tokenises documents in their order and writes them to a new folder, which appears when all is done.

    Documents without a token (empty, or only white space) are skipped and counted. Text that looks like a special
    token is text. The tokenizer is saved beside the shards, in `tokenizer/`.

    Args:
        documents: texts.
        tokenizer_folder: what AutoTokenizer loads; it must know [CLS], [SEP] and [MASK].
        folder: must not exist yet, or be empty.
        workers: processes that tokenise; 0 does it in threads of this one. The result does not depend on it.
        sentences: whether to record where sentences begin.
        shard_tokens: a shard ends with the group of documents that reaches this; at most 2**31.

    Raises:
        ValueError: when a document is not valid Unicode, there is none, the tokenizer does not fit, or a number is out
            of its range.
        OSError: when files cannot be written or a worker dies; FileExistsError when the folder is not empty.
    """
    from transformers import AutoTokenizer

    if workers < 0 or not 1 <= shard_tokens <= 2**31:
        raise ValueError(f"workers must be at least 0, shard_tokens 1 to 2**31, got {workers} and {shard_tokens}")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    ids = {f"{role}_id": getattr(tokenizer, f"{role}_token_id") for role in ("cls", "sep", "mask")}
    if missing := [name for name, value in ids.items() if value is None]:
        raise ValueError(f"{tokenizer_folder}: a tokenizer without a {missing[0].removesuffix('_id')} token")
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    mark = f".{folder.name}.unfinished-"
    for leftover in folder.parent.glob(f"{mark}*"):
        if not _runs(leftover.name.removeprefix(mark)):
            shutil.rmtree(leftover, ignore_errors=True)
    unfinished = folder.parent / f"{mark}{os.getpid()}"
    unfinished.mkdir(parents=True)
    try:
        tokenizer.save_pretrained(unfinished / TOKENIZER)
        writer = _Writer(unfinished, id_dtype(vocab_size), sentences, shard_tokens)
        for chunk in _tokenised(documents, tokenizer.backend_tokenizer.to_str(), sentences, workers):
            writer.add(chunk)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "vocab_size": vocab_size,
            **ids,
            "special_ids": sorted(tokenizer.all_special_ids),
            "skipped": writer.skipped,
            "sentences": sentences,
            "shards": writer.finish(),
        }
        if not manifest["shards"]:
            raise ValueError(f"no document with a token among {writer.skipped}")
        durable.write_json(unfinished / MANIFEST, manifest)
        unfinished.replace(folder)
        durable.sync_folder(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return TokenStore(folder)


def _runs(process: str) -> bool:
    """Whether another process has this number; a build of one that was killed is left for good."""
    if not process.isdecimal() or int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is another user's
    return True


@dataclass
class _Chunk:
    """Tokenised texts: ids end to end, the length of each, and where in the ids sentences begin."""

    ids: NDArray[np.uint32]
    lengths: NDArray[np.int64]
    sentences: NDArray[np.int64]


class _Tokenizer:
    def __init__(self, definition: str, with_sentences: bool) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(definition)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # "[MASK]" in a document is text
        self.with_sentences = with_sentences

    def __call__(self, texts: list[str]) -> _Chunk:
        """Texts of white space alone have length 0."""
        encodings = self.tokenizer.encode_batch(
            [text if text.strip() else "" for text in texts], add_special_tokens=False
        )
        lengths = np.array([len(encoding) for encoding in encodings])
        ids = [np.array(encoding.ids, np.uint32) for encoding in encodings]
        starts = [np.empty(0, np.int64)]
        if self.with_sentences:
            firsts = np.cumsum(lengths) - lengths
            for text, encoding, first in zip(texts, encodings, firsts, strict=True):
                starts.append(first + _token_starts(text, encoding))
        return _Chunk(np.concatenate(ids), lengths, np.concatenate(starts))


def _token_starts(text: str, encoding: Any) -> NDArray[np.int64]:
    """The tokens of a text that hold the first characters of its sentences: (S,), the first is 0."""
    if not len(encoding):
        return np.empty(0, np.int64)
    ends = np.array(encoding.offsets)[:, 1]
    tokens = np.searchsorted(ends, sentence_starts(text), side="right")  # the first that ends beyond
    tokens[0] = 0
    return np.unique(tokens[tokens < ends.size])


def _tokenised(documents: Iterable[str], definition: str, with_sentences: bool, workers: int) -> Iterator[_Chunk]:
    if not workers:
        yield from map(_Tokenizer(definition, with_sentences), _chunks(documents))
        return
    # Not forked from here: threads of torch and of the tokenizer would not survive it. The server imports once for all.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, context, _start_worker, (definition, with_sentences))
    try:
        waiting: deque[Future[_Chunk]] = deque()
        for texts in _chunks(documents):
            waiting.append(pool.submit(_work, texts))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise OSError("a process that tokenises has died; perhaps memory ran out") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(definition: str, with_sentences: bool) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker = _Tokenizer(definition, with_sentences)


def _work(texts: list[str]) -> _Chunk:
    return _worker(texts)


_worker: _Tokenizer


def _chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in groups, each checked to be text that can be written as UTF-8."""
    chunk: list[str] = []
    characters = 0
    for number, document in enumerate(documents):
        try:
            document.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"document {number} is not valid Unicode: {error.reason} at {error.start}") from error
        chunk.append(document)
        characters += len(document)
        if len(chunk) == CHUNK_TEXTS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


class _Writer:
    """Collects chunks and writes a shard whenever it is full."""

    def __init__(self, folder: Path, dtype: type, with_sentences: bool, shard_tokens: int) -> None:
        self.folder, self.dtype, self.with_sentences, self.shard_tokens = folder, dtype, with_sentences, shard_tokens
        self.skipped = 0
        self.shards: list[dict[str, int]] = []
        self.chunks: list[_Chunk] = []
        self.tokens = 0

    def add(self, chunk: _Chunk) -> None:
        self.skipped += int((chunk.lengths == 0).sum())
        self.chunks.append(chunk)
        self.tokens += chunk.ids.size
        if self.tokens >= self.shard_tokens:
            self._write()

    def finish(self) -> list[dict[str, int]]:
        if self.tokens:
            self._write()
        return self.shards

    def _write(self) -> None:
        lengths = np.concatenate([chunk.lengths for chunk in self.chunks])
        firsts = np.cumsum([0, *(chunk.ids.size for chunk in self.chunks[:-1])])
        arrays = {
            "tokens": np.concatenate([chunk.ids.astype(self.dtype) for chunk in self.chunks]),
            "documents": np.cumsum([0, *lengths[lengths > 0]], dtype=np.uint32),
            "sentences": np.concatenate(
                [chunk.sentences + first for chunk, first in zip(self.chunks, firsts, strict=True)]
            ).astype(np.uint32),
        }
        for name, array in arrays.items():
            if name != "sentences" or self.with_sentences:
                save = functools.partial(np.save, arr=array, allow_pickle=False)
                durable.write_file(shard_path(self.folder, len(self.shards), name), save)
        self.shards.append(
            {"documents": arrays["documents"].size - 1, "tokens": self.tokens, "sentences": arrays["sentences"].size}
        )
        self.chunks, self.tokens = [], 0
