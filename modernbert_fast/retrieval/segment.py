"""Documents that were added together: vectors end to end, their bounds, ids, attributes, and which are gone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from modernbert_fast.retrieval import quantize
from modernbert_fast.retrieval.files import CheckedFile, pack_strings, unpack_strings
from modernbert_fast.retrieval.manifest import SegmentEntry


class Vectors(NamedTuple):
    """Vectors (T, D) of documents, their bounds (N + 1,), for int8 a scale (N,) each; which are there, if not all."""

    vectors: torch.Tensor
    bounds: torch.Tensor
    scales: torch.Tensor | None
    live: torch.Tensor | None


class Segment:
    """A segment, mapped into memory. Vectors are read where a search needs them.

    Args:
        folder: of the index.
        entry: what the manifest says of the segment.
        dim, dtype: of the index's vectors.

    Raises:
        FileNotFoundError: a file is not there any more.
        ValueError: a file is not what the manifest says.
    """

    def __init__(self, folder: Path, entry: SegmentEntry, dim: int, dtype: str):
        self.folder, self.entry = folder, entry
        tensors = entry.file.open(folder)
        self._where = folder / entry.file.name
        self.vectors = self._take(tensors, "vectors", quantize.STORED[dtype], entry.tokens, dim)
        self.scales = self._take(tensors, "scales", torch.float32, entry.documents) if dtype == "int8" else None
        self.bounds = self._bounds(tensors, "bounds", torch.int32, entry.tokens)
        self._ids = self._strings(tensors, "id")
        self._attributes = self._strings(tensors, "attribute")
        self._elsewhere: dict[torch.device, Vectors] = {}
        self.live: torch.Tensor | None = None
        if entry.deleted is not None:
            self._where = folder / entry.deleted.name
            rows = entry.deleted.open(folder).get("rows")
            if rows is None or rows.dtype != torch.int64 or rows.dim() != 1:
                raise ValueError(f"{self._where}: rows are not a list of int64")
            if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < entry.documents:
                raise ValueError(f"{self._where}: a row outside [0, {entry.documents})")
            self.live = torch.ones(entry.documents, dtype=torch.bool).index_fill_(0, rows, False)

    @cached_property
    def ids(self) -> list[str]:
        """The id of each document."""
        return [data.decode("utf-8", "replace") for data in unpack_strings(*self._ids)]

    @cached_property
    def attributes(self) -> list[dict[str, Any]]:
        """The attributes of each document."""
        texts = unpack_strings(*self._attributes)
        try:
            rows = [json.loads(text) if text else {} for text in texts]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self._where}: damaged attributes: {error}") from error
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{self._where}: damaged attributes: not objects")
        return rows

    def id(self, row: int) -> str:
        """The id of one document, without reading the others."""
        data, bounds = self._id_arrays
        return data[bounds[row] : bounds[row + 1]].tobytes().decode("utf-8", "replace")

    @cached_property
    def _id_arrays(self) -> tuple[np.ndarray, ...]:
        """Both parts of the ids for NumPy, which takes an element in a tenth of torch's time."""
        return tuple(part.numpy() for part in self._ids)

    def selected(self, where: Mapping[str, Any] | None) -> torch.Tensor | None:
        """(N,) bool, the documents that are there and have these attributes; None when that is all of them."""
        if not where:
            return self.live
        wanted = {
            key: list(value) if isinstance(value, list | tuple | set) else [value] for key, value in where.items()
        }
        fits = [all(row.get(key) in values for key, values in wanted.items()) for row in self.attributes]
        chosen = torch.tensor(fits, dtype=torch.bool)
        return chosen if self.live is None else chosen & self.live

    def on(self, device: torch.device) -> Vectors:
        """The vectors on a device, which keeps them; on the CPU those of the mapped file."""
        here = Vectors(self.vectors, self.bounds, self.scales, self.live)
        if device == self.vectors.device:
            return here
        if device not in self._elsewhere:
            scales, live = (None if x is None else x.to(device) for x in here[2:])
            self._elsewhere[device] = Vectors(self.vectors.to(device), self.bounds.to(device), scales, live)
        return self._elsewhere[device]

    def damage(self) -> list[str]:
        """Reads every byte; what is wrong, a sentence each."""
        files = (self.entry.file, self.entry.deleted)
        return [sentence for file in files if file is not None for sentence in file.damage(self.folder)]

    def living(self) -> list[int]:
        """The rows of documents that are not deleted."""
        return list(range(self.entry.documents)) if self.live is None else self.live.nonzero().squeeze(1).tolist()

    def living_tokens(self) -> int:
        """Vectors of documents that are not deleted."""
        return self.entry.tokens if self.live is None else int(self.bounds.diff()[self.live].sum())

    def decoded(self, kept: torch.Tensor) -> torch.Tensor:
        """Vectors (T', D) fp32 of the documents that are kept (N,) bool."""
        lengths = self.bounds.diff()
        vectors = self.vectors[kept.repeat_interleave(lengths)].float()
        if self.scales is None:
            return vectors
        return vectors * self.scales[kept].repeat_interleave(lengths[kept])[:, None]

    @staticmethod
    def joined(group: Sequence[Segment]) -> dict[str, torch.Tensor]:
        """The documents of several segments that are not deleted, as one segment's file holds them; bits as stored."""
        rows = [segment.live if segment.live is not None else slice(None) for segment in group]
        lengths = [segment.bounds.diff() for segment in group]
        tokens = [
            slice(None) if segment.live is None else segment.live.repeat_interleave(count)
            for segment, count in zip(group, lengths, strict=True)
        ]
        kept = [count[row] for count, row in zip(lengths, rows, strict=True)]
        out = {
            "vectors": torch.cat([segment.vectors[token] for segment, token in zip(group, tokens, strict=True)]),
            "bounds": torch.nn.functional.pad(torch.cat(kept).cumsum(0), (1, 0)).to(torch.int32),
        }
        scales = [s.scales[row] for s, row in zip(group, rows, strict=True) if s.scales is not None]
        if scales:
            out["scales"] = torch.cat(scales)
        for name in ("_ids", "_attributes"):
            strings = [unpack_strings(*getattr(segment, name)) for segment in group]
            chosen = [texts[row] for texts, segment in zip(strings, group, strict=True) for row in segment.living()]
            key = name.strip("_")
            out[key], out[f"{key[:-1]}_bounds"] = pack_strings(chosen)
        return out

    @staticmethod
    def tensors(
        ids: Sequence[str],
        vectors: torch.Tensor,
        cu_seqlens: torch.Tensor,
        attributes: Sequence[Mapping[str, Any]] | None,
        dtype: str,
    ) -> dict[str, torch.Tensor]:
        """What a segment's file holds; arguments have been checked."""
        names, name_bounds = pack_strings([name.encode() for name in ids])
        texts = [json.dumps(dict(row)).encode() if row else b"" for row in attributes or ({},) * len(ids)]
        facts, fact_bounds = pack_strings(texts)
        return {
            **quantize.store(vectors, cu_seqlens, dtype),
            "bounds": cu_seqlens.to(torch.int32),
            "ids": names,
            "id_bounds": name_bounds,
            "attributes": facts,
            "attribute_bounds": fact_bounds,
        }

    def _take(self, tensors: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
            found = "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ValueError(f"{self._where}: {name} should be {dtype} {shape}, is {found}")
        return tensor

    def _bounds(self, tensors: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype, end: int) -> torch.Tensor:
        bounds = self._take(tensors, name, dtype, self.entry.documents + 1)
        if int(bounds[0]) != 0 or int(bounds[-1]) != end or bool((bounds.diff() < 0).any()):
            raise ValueError(f"{self._where}: {name} do not rise from 0 to {end}")
        return bounds

    def _strings(self, tensors: Mapping[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
        data = tensors.get(f"{name}s")
        if data is None or data.dtype != torch.uint8 or data.dim() != 1:
            raise ValueError(f"{self._where}: {name}s are not bytes")
        return data, self._bounds(tensors, f"{name}_bounds", torch.int64, data.numel())


def deleted_file(folder: Path, name: str, rows: Sequence[int]) -> CheckedFile:
    """Puts the rows of a segment that are gone on disk."""
    return CheckedFile.write(folder, name, {"rows": torch.tensor(sorted(rows), dtype=torch.int64)})
