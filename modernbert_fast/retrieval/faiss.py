"""Approximate search over an index of one vector a document, by faiss; for millions of documents and more."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import torch

from modernbert_fast.durable import write_file
from modernbert_fast.retrieval.approximate import Documents, built, is_built
from modernbert_fast.retrieval.index import Hit, Index


class FaissIndex:
    """The documents of an index in a structure of faiss. It finds most of the best, not always all; no filters.

    Args:
        index: one vector a document; the state it has now is searched.
        factory: which structure, as faiss.index_factory names it: "HNSW32", "IVF1024,Flat", "IVF4096,PQ64" ...
        parameters: of its searches, as "efSearch=64" or "nprobe=16"; more is slower and finds more.
        folder: keeps what is built, and it is built anew when the index or `factory` has changed; in memory alone when
            None. Reading it is faiss's: give a folder that only you can write.

    Raises:
        ImportError: without faiss: pip install 'modernbert-fast[faiss]'.
        ValueError: a document has more than one vector, or faiss cannot build such a structure.

    Attributes:
        structure: faiss's own object.
    """

    def __init__(
        self,
        index: Index,
        factory: str = "HNSW32",
        parameters: str = "",
        folder: str | PathLike[str] | None = None,
    ):
        faiss = _faiss()
        self.documents = Documents(index)
        if len(self.documents.vectors) > len(self.documents):
            raise ValueError(f"{index.folder}: documents have many vectors; faiss searches one each")
        kept = None if folder is None else Path(folder)
        try:
            if kept is not None and is_built(kept, index, factory):
                self.structure = faiss.read_index(str(kept / "faiss.index"))
            else:
                self.structure = self._built(factory)
                if kept is not None:
                    kept.mkdir(parents=True, exist_ok=True)
                    write_file(kept / "faiss.index", self._write)
                    built(kept, index, factory)
            if parameters:
                faiss.ParameterSpace().set_index_parameters(self.structure, parameters)
        except RuntimeError as error:  # all that faiss raises; its own function, file and line come first
            raise ValueError(f"faiss: {re.sub(r'^Error in .* at [^ ]+:[0-9]+: ', '', str(error))}") from error
        if self.structure.ntotal != len(self.documents):
            raise ValueError(f"{kept}: holds {self.structure.ntotal} vectors, the index has {len(self.documents)}")

    def search(self, queries: torch.Tensor, k: int = 10) -> list[list[Hit]]:
        """About the k best documents of each query (B, D), best first; scores are faiss's, so those of rounded vectors
        where it rounds them.

        Raises:
            ValueError: as Index.search.
        """
        queries, _ = self.documents.index.checked(queries, None, k)
        scores, numbers = self.structure.search(queries.cpu().numpy(), k)
        return [
            [self.documents.hit(number, score) for number, score in zip(*found, strict=True) if number >= 0]
            for found in zip(numbers.tolist(), scores.tolist(), strict=True)
        ]

    def _built(self, factory: str) -> Any:
        faiss = _faiss()
        structure = faiss.index_factory(self.documents.index.manifest.dim, factory, faiss.METRIC_INNER_PRODUCT)
        vectors = self.documents.vectors.numpy()
        if not structure.is_trained:
            structure.train(vectors)
        structure.add(vectors)
        return structure

    def _write(self, file: BinaryIO) -> None:
        faiss = _faiss()
        faiss.write_index(self.structure, faiss.PyCallbackIOWriter(file.write))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("this needs faiss: pip install 'modernbert-fast[faiss]'") from error
    return faiss
