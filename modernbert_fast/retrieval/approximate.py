"""What adapters to approximate search share: the documents of an index, and whether what is kept was built of them."""

from __future__ import annotations

from pathlib import Path

import torch

from modernbert_fast import untrusted
from modernbert_fast.durable import sync_folder, write_json
from modernbert_fast.retrieval.index import Hit, Index

_STATE = "state.json"


class Documents:
    """The documents with vectors of an index's state, numbered from 0.

    Attributes:
        index: the index, which must not be refreshed meanwhile.
        vectors: (T, D) fp32, as a search would see them.
        bounds: (N + 1,) int32.
    """

    def __init__(self, index: Index):
        self.index = index
        lengths, vectors = [torch.empty(0, dtype=torch.int32)], [torch.empty(0, index.manifest.dim)]
        self._places: list[tuple[int, int]] = []
        for number, segment in enumerate(index.segments):
            count = segment.bounds.diff()
            kept = count > 0 if segment.live is None else (count > 0) & segment.live
            lengths.append(count[kept])
            vectors.append(segment.decoded(kept))
            self._places += [(number, row) for row in kept.nonzero().squeeze(1).tolist()]
        self.vectors = torch.cat(vectors)
        self.bounds = torch.nn.functional.pad(torch.cat(lengths).cumsum(0), (1, 0)).to(torch.int32)

    def __len__(self) -> int:
        return len(self._places)

    def hit(self, number: int, score: float) -> Hit:
        """A document that was found."""
        return self.index.hit(score, *self._places[number])


def is_built(folder: Path, index: Index, how: object) -> bool:
    """Whether `folder` keeps what was built of this state, in this way.

    If not it is to be built anew, and from here on nothing vouches for what is there, however far that gets.
    """
    try:
        if untrusted.read_json(folder / _STATE) == _state(index, how):
            return True
    except (OSError, ValueError):
        pass
    if folder.exists():
        (folder / _STATE).unlink(missing_ok=True)
        sync_folder(folder)
    return False


def built(folder: Path, index: Index, how: object) -> None:
    """From here on it is."""
    write_json(folder / _STATE, _state(index, how))


def _state(index: Index, how: object) -> dict[str, object]:
    return {"how": how, "files": [file.to_json() for file in index.manifest.files()]}
