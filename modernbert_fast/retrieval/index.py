"""Reads an index: exact search over every document of one committed state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from modernbert_fast import ops
from modernbert_fast.ops import checks
from modernbert_fast.retrieval.manifest import Manifest
from modernbert_fast.retrieval.segment import Segment

_RESULTS = 2**24  # winners and scores that a search holds at one time
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

    Attributes:
        manifest: the state.
        segments: its documents, oldest first.

    Raises:
        FileNotFoundError: there is no index in `folder`.
        ValueError: a file of it is damaged; the message names it.
    """

    def __init__(self, folder: str | PathLike[str]):
        self.folder = Path(folder)
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
            ValueError: on shapes that do not fit, queries that are not finite, or k below 1.
        """
        queries, cu_queries = self.checked(queries, cu_queries, k)
        found: list[list[tuple[float, int, int]]] = [[] for _ in range(cu_queries.numel() - 1)]
        for number, segment in enumerate(self.segments):
            selected = segment.selected(where)
            if segment.entry.documents == 0 or (selected is not None and not bool(selected.any())):
                continue
            scores = self._scores(segment, queries, cu_queries)
            if selected is not None:
                scores.masked_fill_(~selected, float("-inf"))
            for row, hits in zip(scores, found, strict=True):
                hits += [(score, number, document) for score, document in _best(row, k)]
                hits.sort(key=lambda hit: (-hit[0], hit[1], hit[2]))
                del hits[k:]
        return [[self.hit(*hit) for hit in hits] for hits in found]

    def checked(
        self, queries: torch.Tensor, cu_queries: torch.Tensor | None, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The queries of a search in fp32 and their bounds, or the ValueError that `search` promises."""
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if queries.dim() != 2 or queries.shape[1] != self.manifest.dim:
            raise ValueError(f"queries must be (Tq, {self.manifest.dim}), got {tuple(queries.shape)}")
        if not bool(queries.isfinite().all()):
            raise ValueError("queries must be finite")
        if cu_queries is None:
            cu_queries = torch.arange(queries.shape[0] + 1, dtype=torch.int32)
        checks.cu_seqlens("cu_queries", cu_queries, queries.shape[0])
        return queries.float(), cu_queries

    def hit(self, score: float, number: int, row: int) -> Hit:
        """The document of a row of a segment, as it is found."""
        segment = self.segments[number]
        return Hit(segment.id(row), score, segment.attributes[row])

    def verify(self) -> list[str]:
        """Reads every byte of the state; what is damaged, a sentence each, the file named."""
        return [sentence for segment in self.segments for sentence in segment.damage()]

    def _scores(self, segment: Segment, queries: torch.Tensor, cu_queries: torch.Tensor) -> torch.Tensor:
        """(Bq, N) fp32; documents a chunk at a time, since winners take as much room as scores."""
        at_once = max(1, _RESULTS // max(queries.shape[0], 1))
        parts = []
        for first in range(0, segment.entry.documents, at_once):
            bounds = segment.bounds[first : first + at_once + 1]
            start, stop = int(bounds[0]), int(bounds[-1])
            vectors = segment.vectors[start:stop]
            scores, _ = ops.maxsim(queries, vectors, cu_queries, bounds - bounds[0], return_argmax=True)
            parts.append(scores)
        scores = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return scores if segment.scales is None else scores * segment.scales


def _best(scores: torch.Tensor, k: int) -> list[tuple[float, int]]:
    """The k largest finite scores (N,) and where they are, the first of equals first."""
    least = scores.topk(min(k, scores.numel())).values[-1]
    kept = ((scores >= least) & (scores > float("-inf"))).nonzero().squeeze(1)  # with all that equal the last
    order = scores[kept].sort(descending=True, stable=True).indices[:k]
    return list(zip(scores[kept[order]].tolist(), kept[order].tolist(), strict=True))
