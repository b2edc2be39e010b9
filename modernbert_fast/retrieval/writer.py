"""Changes an index: every change is a new file and then one new manifest, on disk before it is acknowledged."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from modernbert_fast.ops import checks
from modernbert_fast.retrieval.files import CheckedFile
from modernbert_fast.retrieval.manifest import DTYPES, NAME, Manifest, SegmentEntry
from modernbert_fast.retrieval.residual import MOST_CENTROIDS
from modernbert_fast.retrieval.segment import Segment, deleted_file

_LOCK = "lock"
_OWN = re.compile(rf"{_LOCK}|({re.escape(NAME)}|\d{{8,}}-\d+\.(segment|deleted)\.safetensors)(\.\d+\.tmp)?")
_TIERS = 64  # segments after which an addition joins small ones
_ELEMENTS = 2**29  # of a segment's vectors, a gigabyte in float16
MAX_ID = 1024  # bytes
_LARGEST_HALF = 65504.0


class IndexWriter:
    """The one writer of an index; readers go on meanwhile.

    What `add`, `delete` and `merge` did is on disk when they return, whole, and if the process dies before that, the
    index is as it was. Use it as a context manager, or call `close`.

    Args:
        folder: of the index.
        dim: width of the vectors, for a new index. An index that is there must have it too.
        dtype: "float16", "int8" or "residual4" (4 bits an element), for a new index.
        about: facts kept with a new index, such as the model's name. JSON values.

    Raises:
        FileNotFoundError: there is no index, and no dim to make one.
        FileExistsError: a new index in a folder that holds other files.
        BlockingIOError: somebody else writes to this index.
        ValueError: the index is damaged, or has another dim or dtype.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        dim: int | None = None,
        dtype: str | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        self.folder = Path(folder)
        if dtype not in (None, *DTYPES):
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if dim is not None:
            if dim < 1:
                raise ValueError(f"dim must be at least 1, got {dim}")
            self.folder.mkdir(parents=True, exist_ok=True)
        elif not (self.folder / NAME).exists():
            raise FileNotFoundError(f"{self.folder}: there is no index")
        if strange := sorted(path.name for path in self.folder.iterdir() if not _OWN.fullmatch(path.name)):
            raise FileExistsError(f"{self.folder} holds {strange[0]}, which is not of an index")
        self._lock = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            self._begin(dim, dtype, dict(about or {}))
        except BaseException:
            self.close()
            raise

    def _begin(self, dim: int | None, dtype: str | None, about: dict[str, Any]) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"{self.folder}: somebody else writes to this index") from error
        if (self.folder / NAME).exists():
            self.manifest = Manifest.read(self.folder)
            for name, asked, there in (("dim", dim, self.manifest.dim), ("dtype", dtype, self.manifest.dtype)):
                if asked not in (None, there):
                    raise ValueError(f"{self.folder}: {name} is {there}, not {asked}")
        else:
            assert dim is not None
            self.manifest = Manifest(dim, dtype or DTYPES[0], about=about)
            self.manifest.commit(self.folder)
        self._segments = [self._opened(entry) for entry in self.manifest.segments]
        self._rows: dict[str, tuple[int, int]] = {}
        self._list(0)
        self._sweep()

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def close(self) -> None:
        """Lets others write."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def add(
        self,
        ids: Sequence[str],
        vectors: torch.Tensor,
        cu_seqlens: torch.Tensor | None = None,
        attributes: Sequence[Mapping[str, Any]] | None = None,
        *,
        replace: bool = False,
    ) -> None:
        """Adds documents; all of them or, where this raises, none.

        Args:
            ids: N names, each given once and not in the index yet.
            vectors: (T, D) floating point, finite.
            cu_seqlens: (N + 1,) int32 bounds of the documents; None when each has one vector.
            attributes: N dicts of JSON values, for `where` of a search.
            replace: an id that is in the index gets this document instead.

        Raises:
            ValueError: on what does not fit the above; the message names the document.
        """
        checks.floating(vectors=vectors)
        checks.shape("vectors", vectors, None, self.manifest.dim)
        vectors = vectors.detach().cpu()
        bounds = torch.arange(vectors.shape[0] + 1, dtype=torch.int32) if cu_seqlens is None else cu_seqlens.cpu()
        self._check(ids, vectors, bounds, attributes, replace)
        if not ids:
            return
        entries: list[SegmentEntry] = []
        for first, last in _chunks(bounds.tolist(), self._most):
            start, stop = int(bounds[first]), int(bounds[last])
            tensors = Segment.tensors(
                ids[first:last],
                vectors[start:stop],
                bounds[first : last + 1] - start,
                None if attributes is None else attributes[first:last],
                self.manifest.dtype,
            )
            file = CheckedFile.write(self.folder, self._name(len(entries), "segment"), tensors)
            entries.append(SegmentEntry(file, last - first, stop - start))
        kept = self._without({name for name in ids if name in self._rows}) if replace else self.manifest.segments
        self._commit((*kept, *entries), listed=len(kept))
        if len(self._segments) > _TIERS:
            with contextlib.suppress(
                OSError, ValueError
            ):  # what was added is there; `merge` and `verify` say what is wrong
                self._join(self._newest())

    def delete(self, ids: Sequence[str]) -> int:
        """Deletes documents; how many of the ids were there."""
        present = {name for name in ids if name in self._rows}
        if present:
            self._commit(self._without(present))
            for name in present:
                del self._rows[name]
        return len(present)

    def merge(self) -> None:
        """Writes all documents anew in as few segments as hold them, and gives the room of deleted ones back.

        Raises:
            ValueError: a file is damaged; nothing was changed.
        """
        self._join(0)

    def _join(self, first: int) -> None:
        """Joins the segments from `first` on, after every byte of them was checked."""
        entries: list[SegmentEntry] = []
        for group in self._groups(self._segments[first:]):
            if len(group) == 1 and group[0].live is None:
                entries.append(group[0].entry)
                continue
            if damage := [sentence for segment in group for sentence in segment.damage()]:
                raise ValueError("; ".join(damage))
            file = CheckedFile.write(self.folder, self._name(len(entries), "segment"), Segment.joined(group))
            documents = sum(len(segment.living()) for segment in group)
            entries.append(SegmentEntry(file, documents, sum(segment.living_tokens() for segment in group)))
        if tuple(entries) != self.manifest.segments[first:]:
            self._commit((*self.manifest.segments[:first], *entries), listed=first)

    def _newest(self) -> int:
        """The first segment of those at the end that are not much larger than what follows them.

        So sizes fall by halves, and a document is written anew as often as the logarithm of their number.
        """
        first = len(self._segments) - 1
        total = self._segments[first].entry.tokens
        while first > 0 and (tokens := self._segments[first - 1].entry.tokens) <= 2 * total:
            first, total = first - 1, total + tokens
        return first

    def _name(self, number: int, kind: str) -> str:
        """Of a file of the next change: never the name of an earlier one."""
        return f"{self.manifest.generation + 1:08d}-{number}.{kind}.safetensors"

    @property
    def _most(self) -> int:
        """Vectors that a segment holds at most."""
        return max(1, _ELEMENTS // self.manifest.dim)

    def _list(self, first: int) -> None:
        """Learns where the documents of segments from `first` on are."""
        for number, segment in enumerate(self._segments[first:], first):
            ids = segment.ids
            self._rows.update((ids[row], (number, row)) for row in segment.living())

    def _check(self, ids: Any, vectors: Any, bounds: Any, attributes: Any, replace: bool) -> None:
        if bounds.numel() - 1 != len(ids):
            raise ValueError(f"{len(ids)} ids for {bounds.numel() - 1} documents")
        checks.cu_seqlens("cu_seqlens", bounds, vectors.shape[0])
        if attributes is not None and len(attributes) != len(ids):
            raise ValueError(f"{len(attributes)} attributes for {len(ids)} documents")
        seen: set[str] = set()
        for place, name in enumerate(ids):
            if not isinstance(name, str) or not 0 < len(name.encode()) <= MAX_ID:
                raise ValueError(f"document {place}: an id is a string of 1 to {MAX_ID} bytes, got {name!r:.80}")
            if name in seen:
                raise ValueError(f"document {place}: the id {name!r} is given twice")
            if name in self._rows and not replace:
                raise ValueError(f"document {place}: the id {name!r} is in the index; replace=True replaces it")
            seen.add(name)
        for place, row in enumerate(attributes or ()):
            try:
                if json.loads(json.dumps(dict(row))) != dict(row):
                    raise TypeError("they change when they are written and read")
            except (TypeError, ValueError) as error:
                raise ValueError(f"document {place}: attributes must be a dict of JSON values: {error}") from error
        limit = torch.finfo(torch.float32).max if self.manifest.dtype == "int8" else _LARGEST_HALF
        fits = (vectors.abs() <= limit).all(dim=1)
        if not bool(fits.all()):
            place = int(torch.searchsorted(bounds, int((~fits).nonzero()[0]), right=True)) - 1
            raise ValueError(f"document {place} ({ids[place]!r}): a vector is not finite, or too large")
        if vectors.shape[0] and int(bounds.diff().max()) > self._most:
            raise ValueError(f"document {int(bounds.diff().argmax())} has more than {self._most} vectors")

    def _without(self, ids: set[str]) -> tuple[SegmentEntry, ...]:
        """The segments with these documents marked as gone."""
        gone: dict[int, set[int]] = {}
        for name in ids:
            number, row = self._rows[name]
            gone.setdefault(number, set()).add(row)
        entries = list(self.manifest.segments)
        for number, rows in gone.items():
            segment = self._segments[number]
            if segment.live is not None:
                rows = rows | set((~segment.live).nonzero().squeeze(1).tolist())
            file = deleted_file(self.folder, self._name(number, "deleted"), list(rows))
            entries[number] = dataclasses.replace(entries[number], deleted=file)
        return tuple(entries)

    def _commit(self, entries: tuple[SegmentEntry, ...], listed: int | None = None) -> None:
        """Replaces the manifest: the change is there. Documents of segments from `listed` on have a new place."""
        known = dict(zip(self.manifest.segments, self._segments, strict=True))
        segments = [known.get(entry) or self._opened(entry) for entry in entries]
        manifest = self.manifest.with_segments(entries)
        manifest.commit(self.folder)
        self.manifest, self._segments = manifest, segments
        if listed is not None:
            self._list(listed)
        self._sweep()

    def _opened(self, entry: SegmentEntry) -> Segment:
        return Segment(self.folder, entry, self.manifest.dim, self.manifest.dtype)

    def _sweep(self) -> None:
        """Removes files that no state needs: of changes that were cut short, or whose documents were merged."""
        needed = {file.name for file in self.manifest.files()} | {NAME, _LOCK}
        for path in self.folder.iterdir():
            if path.name not in needed and _OWN.fullmatch(path.name):
                with contextlib.suppress(OSError):  # the next writer tries again
                    path.unlink()

    def _groups(self, segments: Sequence[Segment]) -> Iterator[list[Segment]]:
        """Neighbouring segments whose documents that are left fit one segment."""
        group: list[Segment] = []
        for segment in segments:
            if not segment.living():
                continue
            if group and not self._fits([*group, segment]):
                yield group
                group = []
            group.append(segment)
        if group:
            yield group

    def _fits(self, group: Sequence[Segment]) -> bool:
        """Whether the documents that are left fit one segment."""
        centroids = sum(member.centroids() for member in group)
        return sum(member.living_tokens() for member in group) <= self._most and centroids <= MOST_CENTROIDS


def _chunks(bounds: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of documents of at most `most` vectors each."""
    first = 0
    for last in range(1, len(bounds)):
        if last > first + 1 and bounds[last] - bounds[first] > most:
            yield first, last - 1
            first = last - 1
    yield first, len(bounds) - 1
