"""Reads an index: exact search over every document of one committed state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from modernbert_fast import dispatch, ops
from modernbert_fast.library import Reading
from modernbert_fast.ops import checks
from modernbert_fast.retrieval.manifest import Manifest
from modernbert_fast.retrieval.segment import Segment

_TRIES = 100  # of reading a manifest whose files a writer has replaced meanwhile


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Attributes:
        id: its id.
        score: sum over the query's vectors of the best dot product with any of the document's.
        attributes: as they were added.
    """

    id: str
    score: float
    attributes: dict[str, Any]


class Index:
    """An index on disk, one committed state of it. A writer may go on meanwhile; `refresh` sees what it did.

    Args:
        folder: of the index.
        device: that searches. On "cpu" vectors stay in the mapped files; another device gets a copy of each segment
            with the first search. There queries are rounded to float16, as vectors of a float16 index are, because that
            is what its tensor cores multiply; of queries that lie on the host only results are waited for.

    Attributes:
        manifest: the state.
        segments: its documents, oldest first.

    Raises:
        FileNotFoundError: there is no index in `folder`.
        ValueError: a file of it is damaged; the message names it.
    """

    def __init__(self, folder: str | PathLike[str], device: str | torch.device = "cpu"):
        self.folder, self.device = Path(folder), torch.device(device)
        self.segments: list[Segment] = []
        self._read()

    def __len__(self) -> int:
        return sum(s.entry.documents if s.live is None else int(s.live.sum()) for s in self.segments)

    def refresh(self) -> bool:
        """Goes on to the newest committed state; whether there was a newer one."""
        former = self.manifest
        self._read()
        return self.manifest != former

    def _read(self) -> None:
        known = {segment.entry: segment for segment in self.segments}
        for attempt in range(_TRIES):
            manifest = Manifest.read(self.folder)
            try:
                self.segments = [
                    known.get(entry) or Segment(self.folder, entry, manifest.dim, manifest.dtype)
                    for entry in manifest.segments
                ]
                self.manifest = manifest
                return
            except FileNotFoundError:  # merged away between the two reads; a newer manifest says into what
                if attempt + 1 == _TRIES or Manifest.read(self.folder).generation == manifest.generation:
                    raise

    def search(
        self,
        queries: torch.Tensor,
        cu_queries: torch.Tensor | None = None,
        k: int = 10,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """The k best documents of each query, best first; equal scores in the order they were added.

        Args:
            queries: (Tq, D) floating point vectors.
            cu_queries: (Bq + 1,) int32 bounds of the queries; None when each has one vector.
            k: at most this many each; documents without vectors are never found.
            where: attributes that a document must have; a list means any of its values.

        Raises:
            ValueError: on shapes that do not fit, queries that are not finite once rounded, or k below 1.
        """
        queries, cu_queries = self.checked(queries, cu_queries, k, self._multiplied)
        on_device = not dispatch.host_readable(self.device)  # a copy to the host has to be waited for
        queries, cu_queries = (x.to(self.device, non_blocking=on_device) for x in (queries, cu_queries))
        numbers: list[int] = []
        best: list[tuple[torch.Tensor, torch.Tensor]] = []
        for number, segment in enumerate(self.segments):
            selected = segment.selected(where)
            if segment.entry.documents == 0 or (selected is not None and not bool(selected.any())):
                continue
            vectors, bounds, scales, live = segment.on(self.device)
            allowed = selected.to(self.device, non_blocking=True) if where and selected is not None else live
            at_most = min(k, segment.entry.documents)
            best.append(ops.maxsim_topk(queries, vectors, cu_queries, bounds, at_most, scales=scales, allowed=allowed))
            numbers += [number] * at_most
        # Every segment is under way before the first result is waited for.
        found = [Reading(x[0] if len(x) == 1 else torch.cat(x, 1)) for x in zip(*best, strict=True)]
        hits: list[list[tuple[float, int, int]]] = [[] for _ in range(cu_queries.numel() - 1)]
        for row, scores, documents in zip(hits, *(reading.get() for reading in found), strict=True) if found else ():
            row += [hit for hit in zip(scores, numbers, documents, strict=True) if hit[2] >= 0]
            row.sort(key=lambda hit: (-hit[0], hit[1], hit[2]))
        return [[self.hit(*hit) for hit in row[:k]] for row in hits]

    @property
    def _multiplied(self) -> torch.dtype:
        """What queries are rounded to."""
        return torch.float32 if dispatch.host_readable(self.device) else torch.float16

    def checked(
        self, queries: torch.Tensor, cu_queries: torch.Tensor | None, k: int, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The queries of a search in `dtype` and their bounds, or the ValueError that `search` promises."""
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if queries.dim() != 2 or queries.shape[1] != self.manifest.dim:
            raise ValueError(f"queries must be (Tq, {self.manifest.dim}), got {tuple(queries.shape)}")
        if cu_queries is None:
            cu_queries = torch.arange(queries.shape[0] + 1, dtype=torch.int32)
        checks.cu_seqlens("cu_queries", cu_queries, queries.shape[0])
        queries = queries.to(dtype)
        if not bool(queries.isfinite().all()):  # a number that is too large would score as infinite
            raise ValueError(f"queries must be finite in {dtype}")
        return queries, cu_queries

    def hit(self, score: float, number: int, row: int) -> Hit:
        """The document of a row of a segment, as it is found."""
        segment = self.segments[number]
        return Hit(segment.id(row), score, segment.attributes[row])

    def verify(self) -> list[str]:
        """Reads every byte of the state; what is damaged, a sentence each, the file named."""
        return [sentence for segment in self.segments for sentence in segment.damage()]
