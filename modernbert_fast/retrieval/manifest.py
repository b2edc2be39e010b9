"""The state of an index: one JSON file, replaced as a whole by every change that is acknowledged."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modernbert_fast import untrusted
from modernbert_fast.durable import write_json
from modernbert_fast.retrieval.files import CheckedFile, manifest_crc

NAME = "manifest.json"
FORMAT, VERSION = "modernbert_fast.index", 1
DTYPES = ("float16", "int8", "residual4")


@dataclass(frozen=True)
class SegmentEntry:
    """One segment: documents that were added together.

    Attributes:
        file: their vectors, bounds, ids and attributes.
        documents: N. tokens: T.
        deleted: the rows that are gone, if any.
    """

    file: CheckedFile
    documents: int
    tokens: int
    deleted: CheckedFile | None = None

    @classmethod
    def from_json(cls, record: Any) -> SegmentEntry:
        record = untrusted.mapping("segment", record)
        gone = record.get("deleted")
        return cls(
            CheckedFile.from_json(record.get("file")),
            untrusted.integer("documents", record.get("documents"), 0, 2**31 - 1),
            untrusted.integer("tokens", record.get("tokens"), 0, 2**31 - 1),
            None if gone is None else CheckedFile.from_json(gone),
        )

    def to_json(self) -> dict[str, Any]:
        gone = None if self.deleted is None else self.deleted.to_json()
        return {"file": self.file.to_json(), "documents": self.documents, "tokens": self.tokens, "deleted": gone}


@dataclass(frozen=True)
class Manifest:
    """A committed state of an index.

    Attributes:
        dim: D, the width of every vector.
        dtype: how vectors are stored, one of DTYPES.
        generation: grows by one with every change.
        segments: oldest first.
        about: what the vectors were computed from; the caller's own facts.
    """

    dim: int
    dtype: str
    generation: int = 0
    segments: tuple[SegmentEntry, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The newest committed state.

        Raises:
            FileNotFoundError: there is no index.
            ValueError: the manifest is damaged, or of another version.
        """
        path = folder / NAME
        try:
            record = untrusted.read_json(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{folder}: there is no index") from error
        try:
            if record.get("format") != FORMAT:
                raise ValueError("not an index of modernbert_fast")
            if record.get("version") != VERSION:
                raise ValueError(f"version {record.get('version')!r}; this program reads {VERSION}")
            if record.get("crc32") != manifest_crc(record):
                raise ValueError("damaged: the checksum does not fit the content")
            untrusted.choice("dtype", record.get("dtype"), DTYPES)
            return cls(
                untrusted.integer("dim", record.get("dim"), 1, 2**20),
                record["dtype"],
                untrusted.integer("generation", record.get("generation"), 0, 2**62),
                tuple(map(SegmentEntry.from_json, untrusted.sequence("segments", record.get("segments")))),
                dict(untrusted.mapping("about", record.get("about"))),
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def commit(self, folder: Path) -> None:
        """Makes this the state of the index; readers see it from here on.

        Raises:
            ValueError: it would be larger than `read` takes.
        """
        record = {
            "format": FORMAT,
            "version": VERSION,
            "generation": self.generation,
            "dim": self.dim,
            "dtype": self.dtype,
            "about": self.about,
            "segments": [segment.to_json() for segment in self.segments],
        }
        if len(text := json.dumps(record, indent=2)) > untrusted.MAX_JSON_BYTES - 1024:
            raise ValueError(f"{folder}: too much for one manifest; merge the index, or keep fewer facts about it")
        record = json.loads(text)  # as it will be read back
        write_json(folder / NAME, {**record, "crc32": manifest_crc(record)})

    def with_segments(self, segments: tuple[SegmentEntry, ...]) -> Manifest:
        """The next state."""
        return replace(self, segments=segments, generation=self.generation + 1)

    def files(self) -> list[CheckedFile]:
        """Every file that this state needs."""
        return [file for entry in self.segments for file in (entry.file, entry.deleted) if file is not None]
