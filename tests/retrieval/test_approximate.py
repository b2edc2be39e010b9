"""The adapters to faiss and fast-plaid: what they find, and what they keep."""

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from modernbert_fast.retrieval import Index, IndexWriter
from modernbert_fast.retrieval import faiss as faiss_adapter
from modernbert_fast.retrieval import fast_plaid as fast_plaid_adapter
from modernbert_fast.retrieval.fast_plaid import FastPlaidIndex

pytestmark = pytest.mark.usefixtures("one_thread")
D = 32


def about(count, seed):
    """Vectors (count, D) of length 1 around twenty subjects."""
    draw = torch.Generator().manual_seed(seed)
    subjects = torch.randn(20, D, generator=torch.Generator().manual_seed(7))[
        torch.randint(20, (count,), generator=draw)
    ]
    return torch.nn.functional.normalize(subjects + torch.randn(count, D, generator=draw), dim=1)


def fill(folder, lengths, dtype="float16"):
    """An index of documents around a few subjects, in two segments, some of them deleted."""
    bounds = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    vectors, half = about(int(bounds[-1]), 0), len(lengths) // 2
    with IndexWriter(folder, D, dtype) as writer:
        for first, last in ((0, half), (half, len(lengths))):
            cut = bounds[first : last + 1]
            names = [f"doc {i}" for i in range(first, last)]
            writer.add(names, vectors[cut[0] : cut[-1]], cut - cut[0], [{"name": name} for name in names])
        writer.delete([f"doc {i}" for i in range(0, len(lengths), 7)])
    return Index(folder)


def recall(found, exact):
    """The share of what an exact search finds."""
    pairs = list(zip(found, exact, strict=True))
    return sum(len({hit.id for hit in a} & {hit.id for hit in b}) for a, b in pairs) / sum(len(b) for _, b in pairs)


def faiss_index(*arguments, **options):
    pytest.importorskip("faiss")
    return faiss_adapter.FaissIndex(*arguments, **options)


def plaid_index(*arguments, **options):
    try:
        return FastPlaidIndex(*arguments, **options)
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize(
    "factory, parameters, least", [("Flat", "", 1), ("HNSW16", "efSearch=64", 0.95), ("IVF16,Flat", "nprobe=8", 0.9)]
)
def test_faiss_finds_what_an_exact_search_finds(tmp_path, dtype, factory, parameters, least):
    index = fill(tmp_path, [1] * 700 + [0] * 9, dtype)
    queries = about(20, 1)
    exact, found = index.search(queries, k=10), faiss_index(index, factory, parameters).search(queries, k=10)
    assert recall(found, exact) >= least
    assert all(hit.attributes == {"name": hit.id} for hits in found for hit in hits)
    if factory == "Flat":
        for hits, expected in zip(found, exact, strict=True):
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-6)


def test_faiss_keeps_what_it_built_until_the_index_changes(tmp_path, monkeypatch):
    index, kept = fill(tmp_path / "index", [1] * 50), tmp_path / "kept"
    first = faiss_index(index, folder=kept).search(about(3, 1))
    with monkeypatch.context() as patch:
        patch.setattr(faiss_adapter.FaissIndex, "_built", None)
        assert faiss_adapter.FaissIndex(index, folder=kept).search(about(3, 1)) == first
        with pytest.raises(TypeError):
            faiss_adapter.FaissIndex(index, "Flat", folder=kept)
    with IndexWriter(tmp_path / "index") as writer:
        writer.add(["best"], about(1, 1))
    index.refresh()
    assert faiss_adapter.FaissIndex(index, folder=kept).search(about(3, 1))[0][0].id == "best"
    (kept / "faiss.index").write_bytes(b"IxFI damaged")
    with pytest.raises(ValueError, match="faiss"):
        faiss_adapter.FaissIndex(index, folder=kept)


@pytest.mark.parametrize("cut", ["write", "state"])
def test_faiss_interrupted_while_it_builds_anew(tmp_path, monkeypatch, cut):
    """What was there before is whole or vouched for by nothing: neither torn nor of another factory."""
    faiss = pytest.importorskip("faiss")
    index, kept = fill(tmp_path / "index", [1] * 50), tmp_path / "kept"
    flat = faiss_adapter.FaissIndex(index, "Flat", folder=kept)

    before, write = (kept / "faiss.index").read_bytes(), faiss.write_index

    def interrupted(*arguments):
        if cut == "write":
            write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((faiss, "write_index") if cut == "write" else (faiss_adapter, "built")), interrupted)
        with pytest.raises(KeyboardInterrupt):
            faiss_adapter.FaissIndex(index, "HNSW16", folder=kept)
    if cut == "write":
        assert [path.name for path in kept.iterdir()] == ["faiss.index"]
        assert (kept / "faiss.index").read_bytes() == before
    again = faiss_adapter.FaissIndex(index, "Flat", folder=kept)
    assert type(again.structure) is type(flat.structure)
    assert again.search(about(3, 1)) == flat.search(about(3, 1))


def test_faiss_refuses(tmp_path):
    index = fill(tmp_path / "one", [1] * 20)
    with pytest.raises(ValueError, match="many vectors"):
        faiss_index(fill(tmp_path / "many", [1, 2, 3]))
    with pytest.raises(ValueError, match="faiss: could not parse"):
        faiss_index(index, "Nonsense")
    with pytest.raises(ValueError, match="faiss"):
        faiss_index(index, parameters="nprobes=x")
    with pytest.raises(ValueError, match="queries must be"):
        faiss_index(index).search(torch.ones(1, 3))
    assert [len(hits) for hits in faiss_index(index).search(about(3, 1), k=100)] == [17] * 3


def test_fast_plaid_finds_what_an_exact_search_finds(tmp_path):
    lengths = torch.randint(0, 12, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    index = fill(tmp_path / "index", lengths)
    bounds = torch.arange(0, 41, 4, dtype=torch.int32)
    exact = index.search(about(40, 1), bounds, k=10)
    found = plaid_index(index, tmp_path / "kept").search(about(40, 1), bounds, k=10)
    assert recall(found, exact) > 0.8
    assert all(hit.attributes == {"name": hit.id} for hits in found for hit in hits)
    assert FastPlaidIndex(index, tmp_path / "kept").search(about(40, 1), bounds, k=10) == found
    with IndexWriter(tmp_path / "index") as writer:
        writer.add(["best"], about(4, 1), torch.tensor([0, 4], dtype=torch.int32))
    index.refresh()
    assert FastPlaidIndex(index, tmp_path / "kept").search(about(4, 1), bounds[:2])[0][0].id == "best"
    with pytest.raises(ValueError, match="cu_queries"):
        FastPlaidIndex(index, tmp_path / "kept").search(about(4, 1), bounds)


def test_fast_plaid_interrupted_while_it_builds_anew(tmp_path, monkeypatch):
    """Nothing vouches for what it left, and the next build starts from an empty folder; fast-plaid is stood in for."""
    builds = []

    class FastPlaid:
        def __init__(self, folder, device):
            self.file = Path(folder) / "bits"

        def create(self, vectors, nbits):
            assert not self.file.exists()
            self.file.parent.mkdir(parents=True)
            self.file.write_text(str(nbits))
            builds.append(nbits)
            if len(builds) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(fast_plaid_adapter, "_fits_torch", lambda: None)
    monkeypatch.setitem(sys.modules, "fast_plaid", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "fast_plaid.search", SimpleNamespace(FastPlaid=FastPlaid))
    index, kept = fill(tmp_path / "index", [1, 2, 3]), tmp_path / "kept"
    FastPlaidIndex(index, kept, bits=4)
    FastPlaidIndex(index, kept, bits=4)
    with pytest.raises(KeyboardInterrupt):
        FastPlaidIndex(index, kept, bits=2)
    FastPlaidIndex(index, kept, bits=4)
    assert builds == [4, 2, 4] and (kept / "plaid" / "bits").read_text() == "4"


def test_fast_plaid_for_another_torch_is_refused(tmp_path, monkeypatch):
    """It would end the process."""
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy>=1", "torch==1.2.3"])
    with pytest.raises(ImportError, match=r"compiled for torch 1\.2\.3"):
        FastPlaidIndex(fill(tmp_path / "index", [1, 2]), tmp_path / "kept")
