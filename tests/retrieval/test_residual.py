"""Vectors of 4 bits an element in an index: what they lose, what they take, what a merge keeps, and files that lie."""

import pytest
import torch
from safetensors.torch import load_file

from modernbert_fast import ops
from modernbert_fast.retrieval import Index, IndexWriter, residual
from modernbert_fast.retrieval import writer as writers
from modernbert_fast.retrieval.files import CheckedFile

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clustered(count, dim, clusters=20, spread=0.3):
    """Unit vectors near a few directions."""
    centres = torch.nn.functional.normalize(drawn(clusters, dim), dim=1)
    noise = spread * drawn(count, dim, seed=1) / dim**0.5
    return torch.nn.functional.normalize(centres[torch.arange(count) % clusters] + noise, dim=1)


def fill(folder, vectors, per_document=5, first=0, **options):
    count = len(vectors) // per_document
    bounds = torch.arange(count + 1, dtype=torch.int32) * per_document
    with IndexWriter(folder, vectors.shape[1], "residual4", **options) as writer:
        writer.add([f"{first + i}" for i in range(count)], vectors, bounds)


def decoded(index):
    return torch.cat([s.decoded(torch.ones(s.entry.documents, dtype=torch.bool)) for s in index.segments])


def lost(vectors, stored):
    return float((vectors - stored).square().sum() / vectors.square().sum())


def test_what_is_lost_and_what_is_kept(tmp_path):
    """16 levels lose 0.0115 of normal numbers; of vectors in clusters, that share of their distance to the centroid."""
    for name, vectors, most in (
        ("normal", torch.nn.functional.normalize(drawn(6000, 48), dim=1), 0.0125),
        ("clustered", clustered(6000, 48), 0.0025),
    ):
        fill(tmp_path / name, vectors)
        index = Index(tmp_path / name)
        assert lost(vectors, decoded(index)) < most, name
        (segment,) = index.segments
        assert segment.centroids() == 6000 // 128
        assert segment.vectors.nbytes == 6000 * (24 + 2) + segment.centroids() * (48 + 16)
        again = residual.encode(vectors)
        assert all(map(torch.equal, vars(again).values(), vars(residual.encode(vectors)).values()))


@pytest.mark.parametrize("D", [1, 2, 17, 32])
@pytest.mark.parametrize(
    "vectors",
    [
        lambda D: torch.zeros(9, D),
        lambda D: torch.full((200, D), 127.0),
        lambda D: drawn(1, D).clamp(-127, 127),
        lambda D: drawn(300, D).sign() * 127,
        lambda D: (60 * drawn(300, D) ** 3).clamp(-127, 127),
        lambda D: torch.where(drawn(300, D) > 2, 127.0, -120.0),
        lambda D: torch.cat((torch.full((290, D), 100.0), -127 * torch.ones(10, D))),
    ],
)
def test_no_sum_wraps(vectors, D):
    """Sums are modulo 256. One that left the range would be further from its element than a level near 0 is."""
    given = vectors(D)
    stored = residual.encode(given)
    least = stored.levels.gather(1, stored.levels.short().abs().argmin(1, keepdim=True))
    plain = stored.centroids.float() + least
    assert ((stored.float() - given).abs() <= (plain[stored.nearest.long()] - given).abs()).all()


def test_documents_of_any_length_keep_their_direction(tmp_path):
    """Those whose squares fp32 does not hold become zero, and disturb no other."""
    sizes = torch.tensor([1e-6, 1.0, 3e4, 0.0, 1e-25, 1e-43]).repeat_interleave(25)[:, None]
    vectors = clustered(150, 32) * sizes
    fill(tmp_path, vectors)
    stored = decoded(Index(tmp_path))
    assert (torch.cosine_similarity(stored, vectors)[:75] > 0.99).all()
    assert not stored[75:100].any() and (stored[100:].abs() <= 1e-25).all()


def test_search_is_that_of_what_is_stored(tmp_path):
    """In two segments."""
    vectors = clustered(1000, 32)
    for first in (0, 100):
        fill(tmp_path, vectors[5 * first : 5 * first + 500], first=first)
    index, queries = Index(tmp_path), clustered(6, 32, clusters=3)
    stored = decoded(index)
    truth = (queries.double() @ stored.double().T).view(6, 200, 5).amax(2).view(2, 3, 200).sum(1)
    expected = truth.topk(10)
    for hits, scores, rows in zip(
        index.search(queries, torch.tensor([0, 3, 6], dtype=torch.int32)), *expected, strict=True
    ):
        assert [hit.id for hit in hits] == [str(row) for row in rows.tolist()]
        torch.testing.assert_close(torch.tensor([hit.score for hit in hits]).double(), scores, rtol=1e-6, atol=0)


def test_a_merge_keeps_the_bits_and_drops_centroids_that_nobody_is_near(tmp_path, monkeypatch):
    for first in range(4):
        fill(tmp_path, clustered(600, 16) if first else drawn(600, 16), first=120 * first)
    with IndexWriter(tmp_path) as writer:
        writer.delete([str(i) for i in range(480) if i % 120 != 7])  # a document of each segment is left
        before, query = Index(tmp_path), clustered(3, 16)
        kept = torch.cat([s.decoded(s.live) for s in before.segments])
        found = before.search(query, k=4)
        assert [s.centroids() for s in before.segments] == [4] * 4
        with monkeypatch.context() as patch:
            patch.setattr(writers, "MOST_CENTROIDS", 8)
            writer.merge()
            assert len(Index(tmp_path).segments) == 2
        writer.merge()
    after = Index(tmp_path)
    (segment,) = after.segments
    assert torch.equal(decoded(after), kept) and after.search(query, k=4) == found
    used = segment.vectors.nearest.unique()
    assert segment.centroids() == len(used) < 16 and after.verify() == []


def test_additions_one_by_one_and_without_vectors(tmp_path):
    vectors = clustered(70, 8)
    with IndexWriter(tmp_path, 8, "residual4") as writer:
        for i in range(70):
            writer.add([str(i)], vectors[i : i + 1])
        writer.add(["empty"], vectors[:0], torch.tensor([0, 0], dtype=torch.int32))
        writer.merge()
    index = Index(tmp_path)
    assert len(index) == 71 and len(index.segments) == 1 and index.verify() == []
    assert lost(vectors, decoded(index)) < 1e-4  # each is its own centroid
    with pytest.raises(ValueError, match="too large"), IndexWriter(tmp_path) as writer:
        writer.add(["large"], torch.full((1, 8), 1e5))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t["nearest"].fill_(len(t["levels"])), "nearest names a centroid outside"),
        (lambda t: t["nearest"][3:4].fill_(-1), "nearest names a centroid outside"),
        (lambda t: t.update(levels=t["levels"][:-1].clone()), "nearest names|centroids should be"),
        (lambda t: t.update(centroids=t["centroids"][:-1].clone()), "centroids should be"),
        (lambda t: t.update(centroids=t["centroids"].float().fill_(float("nan"))), "centroids should be"),
        (lambda t: t.update(levels=t["levels"][:, :8].clone()), "levels should be"),
        (lambda t: t.update(codes=t["codes"][:, 1:].clone()), "codes should be"),
        (lambda t: t.update(codes=t["codes"].char()), "codes should be"),
        (lambda t: t.update(nearest=t["nearest"].int()), "nearest should be"),
        (lambda t: t.pop("levels"), "nearest names"),
        (lambda t: t.pop("scales"), "scales should be"),
    ],
)
def test_files_that_lie_are_refused(tmp_path, change, message):
    """Each comes with a manifest that vouches for it."""
    fill(tmp_path, clustered(300, 16))
    with IndexWriter(tmp_path) as writer:
        (entry,) = writer.manifest.segments
        tensors = load_file(tmp_path / entry.file.name)
        change(tensors)
        file = CheckedFile.write(tmp_path, entry.file.name, tensors)
        lying = writer.manifest.with_segments((type(entry)(file, entry.documents, entry.tokens),))
        lying.commit(tmp_path)
    with pytest.raises(ValueError, match=f"{entry.file.name}.*{message}"):
        Index(tmp_path)


def test_centroids_are_checked_again_where_they_are_read(tmp_path):
    """The file is mapped, and may change under a reader."""
    fill(tmp_path, clustered(300, 16))
    index = Index(tmp_path)
    vectors = index.segments[0].vectors
    assert index.search(clustered(1, 16))[0]
    broken = ops.Compressed(vectors.codes, vectors.nearest + 100, vectors.centroids, vectors.levels)
    index.segments[0].vectors = broken
    with pytest.raises(IndexError, match="nearest holds"):
        index.search(clustered(1, 16))
