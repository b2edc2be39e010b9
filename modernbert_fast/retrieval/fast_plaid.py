"""Approximate search over an index of many vectors a document, by fast-plaid; for hundreds of millions of vectors."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from os import PathLike
from pathlib import Path

import torch

from modernbert_fast.durable import sync_tree
from modernbert_fast.retrieval.approximate import Documents, built, is_built
from modernbert_fast.retrieval.index import Hit, Index


class FastPlaidIndex:
    """The documents of an index, clustered and compressed by fast-plaid. It finds most of the best; no filters.

    Args:
        index: the state it has now is searched.
        folder: keeps what is built, and it is built anew when the index or `bits` has changed. Its files are
            fast-plaid's: give a folder that only you can write.
        bits: of each element of a vector, after the nearest of its centroids is taken away.
        device: as torch names it.

    Raises:
        ImportError: without fast-plaid, or with a torch that it was not compiled for (it would crash).
        ValueError: no document has vectors.
    """

    def __init__(self, index: Index, folder: str | PathLike[str], bits: int = 4, device: str = "cpu"):
        _fits_torch()
        from fast_plaid.search import FastPlaid

        self.documents, kept = Documents(index), Path(folder)
        if not len(self.documents):
            raise ValueError(f"{index.folder}: there are no vectors")
        there, files = is_built(kept, index, bits), kept / "plaid"
        if not there and files.exists():
            shutil.rmtree(files)  # FastPlaid reads what it finds, and a build that was interrupted is torn
        self._plaid = FastPlaid(str(files), device=device)
        if not there:
            lengths = self.documents.bounds.diff().tolist()
            self._plaid.create(list(self.documents.vectors.split(lengths)), nbits=bits)
            sync_tree(files)
            built(kept, index, bits)

    def search(
        self, queries: torch.Tensor, cu_queries: torch.Tensor | None = None, k: int = 10, probes: int = 8
    ) -> list[list[Hit]]:
        """About the k best documents of each query, best first; scores are those of the compressed vectors.

        Args:
            queries, cu_queries, k: as in Index.search.
            probes: clusters that are looked into for each query vector; more is slower and finds more.

        Raises:
            ValueError: as Index.search.
        """
        queries, bounds = self.documents.index.checked(queries, cu_queries, k)
        texts = list(queries.split(bounds.diff().tolist()))
        found = self._plaid.search(texts, top_k=k, n_ivf_probe=probes, show_progress=False)
        return [[self.documents.hit(number, score) for number, score in hits] for hits in found]


def _fits_torch() -> None:
    """fast-plaid calls into one version of torch, to the patch; with another it ends the process."""
    try:
        needs = importlib.metadata.requires("fast-plaid") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError("this needs fast-plaid: pip install 'modernbert-fast[fast-plaid]'") from error
    exact = next((match[1] for need in needs if (match := re.match(r"torch==([\d.]+)", need))), None)
    if exact is not None and torch.__version__.split("+")[0] != exact:
        raise ImportError(f"this fast-plaid was compiled for torch {exact}, here is {torch.__version__}")
