"""The index: exact answers, changes that are whole or not there, and damage that is found."""

import json
import random
import sys
from types import SimpleNamespace

import damaged_index
import index_histories as histories
import pytest
import torch

from modernbert_fast.retrieval import Index, IndexWriter, files
from modernbert_fast.retrieval import writer as writers
from modernbert_fast.retrieval.manifest import DTYPES, Manifest

pytestmark = pytest.mark.usefixtures("one_thread")
D = 16


def corpus(documents=60, longest=7, seed=0):
    """ids, vectors (T, D) normalized, bounds; some documents are empty."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (documents,), generator=draw)
    vectors = torch.nn.functional.normalize(torch.randn(int(lengths.sum()), D, generator=draw), dim=1)
    return [f"doc {i}" for i in range(documents)], vectors, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def fill(folder, dtype="float16", **options):
    ids, vectors, bounds = corpus(**options)
    with IndexWriter(folder, D, dtype) as writer:
        for first in range(0, len(ids), 25):  # several segments
            some = slice(first, first + 25)
            cut = bounds[first : first + 26]
            attributes = [{"parity": i % 2, "name": name} for i, name in enumerate(ids)][some]
            writer.add(ids[some], vectors[cut[0] : cut[-1]], cut - cut[0], attributes)
    return ids, vectors, bounds


def scales_of(segment):
    return 1 if segment.scales is None else segment.scales.repeat_interleave(segment.bounds.diff())[:, None]


def ranking(vectors, bounds, query, keep=lambda i: True):
    """Scores in float64 of each document with vectors that is kept, best first: [(score, place)]."""
    scores = []
    for place, (a, b) in enumerate(zip(bounds.tolist(), bounds.tolist()[1:], strict=False)):
        if b > a and keep(place):
            scores.append((float((query.double() @ vectors[a:b].double().T).amax(1).sum()), place))
    return sorted(scores, key=lambda found: (-found[0], found[1]))


def largest_of(given, bounds):
    """(T, 1) the largest element of each vector's document."""
    lengths = bounds.diff().long()
    largest = torch.segment_reduce(given.abs().amax(1), "max", lengths=lengths, initial=0)
    return largest.repeat_interleave(lengths)[:, None]


@pytest.mark.parametrize("dtype", DTYPES)
def test_search_is_exact(tmp_path, dtype):
    ids, given, bounds = fill(tmp_path / "index", dtype)
    index = Index(tmp_path / "index")
    stored = torch.cat([s.vectors.float() * scales_of(s) for s in index.segments])
    if dtype == "residual4":
        assert (stored - given).square().sum() < 0.013 * given.square().sum()  # 0.0115: 16 levels of normal numbers
    else:
        step = 2**-10 * given.abs() + 2**-24 if dtype == "float16" else largest_of(given, bounds) / 127
        assert ((stored - given).abs() <= step / 2 * 1.001).all()  # half a step, and the rounding of the products here
    queries = torch.nn.functional.normalize(torch.randn(9, D), dim=1)
    hits = index.search(queries, torch.tensor([0, 4, 9], dtype=torch.int32), k=8)
    for rows, found in zip((queries[:4], queries[4:]), hits, strict=True):
        expected = ranking(stored, bounds, rows)[:8]
        assert [hit.id for hit in found] == [ids[place] for _, place in expected]
        torch.testing.assert_close([hit.score for hit in found], [score for score, _ in expected], atol=1e-5, rtol=0)
        assert all(hit.attributes["name"] == hit.id for hit in found)


def test_filters(tmp_path):
    ids, vectors, bounds = fill(tmp_path / "index")
    index = Index(tmp_path / "index")
    query = torch.randn(1, D)
    for where, keep in (
        ({"parity": 1}, lambda i: i % 2 == 1),
        ({"name": ["doc 3", "doc 5", "doc 40"]}, lambda i: i in (3, 5, 40)),
        ({"parity": 1, "name": "doc 4"}, lambda i: False),
        ({"unknown": 1}, lambda i: False),
    ):
        found = [hit.id for hit in index.search(query, k=100, where=where)[0]]
        assert found == [ids[place] for _, place in ranking(vectors.half(), bounds, query, keep)], where


def test_equal_scores_in_the_order_they_were_added(tmp_path):
    with IndexWriter(tmp_path, 2) as writer:
        for first in (0, 4):
            writer.add([str(i) for i in range(first, first + 4)], torch.ones(4, 2))
    assert [hit.id for hit in Index(tmp_path).search(torch.ones(1, 2), k=6)[0]] == list("012345")


def test_a_query_scores_alone_as_in_company(tmp_path):
    fill(tmp_path / "index")
    index = Index(tmp_path / "index")
    queries = torch.randn(12, D)
    bounds = torch.tensor([0, 5, 6, 12], dtype=torch.int32)
    together = index.search(queries, bounds, k=5)
    for i, (a, b) in enumerate(zip(bounds.tolist(), bounds.tolist()[1:], strict=False)):
        assert index.search(queries[a:b], torch.tensor([0, b - a], dtype=torch.int32), k=5) == [together[i]]


def test_large_searches_go_a_chunk_at_a_time(tmp_path, monkeypatch):
    fill(tmp_path / "index")
    index, queries = Index(tmp_path / "index"), torch.randn(3, D)
    whole = index.search(queries, k=7)
    monkeypatch.setattr(sys.modules["modernbert_fast.ops.maxsim"], "_SCORES", 20)
    assert index.search(queries, k=7) == whole


@pytest.mark.parametrize("seed", range(25))
def test_histories(tmp_path, seed):
    steps, states = histories.history(seed)
    dtype, reader = DTYPES[seed % 3], None
    for (action, given), state in zip(steps, states[1:], strict=True):
        with IndexWriter(tmp_path, histories.DIM, dtype) as writer:
            histories.take(writer, action, given)
            assert len(writer) == len(state)
        histories.assert_near(histories.content(Index(tmp_path)), state, dtype)
        reader = reader or Index(tmp_path)
        reader.refresh()
        assert len(reader) == len(state)
        assert reader.verify() == []


def test_merging_keeps_the_answers_and_gives_room_back(tmp_path, monkeypatch):
    fill(tmp_path)
    with IndexWriter(tmp_path) as writer:
        writer.delete([f"doc {i}" for i in range(0, 60, 3)])
        before, query = Index(tmp_path), torch.randn(2, D)
        monkeypatch.setattr(writers, "_ELEMENTS", 100 * D)
        writer.merge()
    after = Index(tmp_path)
    assert 1 < len(after.segments) <= 3
    assert all(segment.live is None and segment.entry.tokens <= 100 for segment in after.segments)
    assert after.search(query, k=60) == before.search(query, k=60)  # the former files are gone, but not for `before`
    assert not before.verify() == []


def test_many_small_additions_stay_few_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "_TIERS", 4)
    written = 0
    with IndexWriter(tmp_path, 2) as writer:
        for i in range(60):
            former = {entry.file.name for entry in writer.manifest.segments}
            writer.add([str(i)], torch.full((1, 2), float(i)))
            assert len(writer.manifest.segments) <= 5
            written += sum(entry.documents for entry in writer.manifest.segments if entry.file.name not in former)
        writer.delete(["7"])
    assert written < 60 * 6  # documents are written anew as often as the logarithm of their number
    expected = [str(i) for i in reversed(range(60)) if i != 7]
    assert [hit.id for hit in Index(tmp_path).search(torch.ones(1, 2), k=100)[0]] == expected


def test_what_is_damaged_is_not_merged(tmp_path):
    with IndexWriter(tmp_path, 2) as writer:
        writer.add(["a", "b"], torch.ones(2, 2))
        writer.delete(["a"])
        (path,) = tmp_path.glob("*.segment.safetensors")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{path.name}.*damaged"):
            writer.merge()
    assert Index(tmp_path).verify()


def test_damage_does_not_keep_documents_out(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "_TIERS", 1)
    with IndexWriter(tmp_path, 2) as writer:
        writer.add(["a"], torch.ones(1, 2))
        (path,) = tmp_path.glob("*.segment.safetensors")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        writer.add(["b"], torch.ones(1, 2))  # would be joined with the damaged one
        assert list(writer) == ["a", "b"]
    assert len(Index(tmp_path)) == 2 and Index(tmp_path).verify()


def test_names_are_never_used_again(tmp_path):
    seen = set()
    with IndexWriter(tmp_path, 2) as writer:
        for _ in range(3):
            writer.add(["a", "b"], torch.ones(2, 2))
            writer.delete(["a"])
            names = {file.name for file in writer.manifest.files()}
            writer.delete(["b"])
            writer.merge()
            assert names and not seen & names
            seen |= names


def test_a_change_that_is_committed_does_not_raise(tmp_path, monkeypatch):
    unlink = writers.Path.unlink

    def refuses(path, missing_ok=False):
        if path.name.startswith("00000009"):
            raise PermissionError(path)
        unlink(path, missing_ok)

    with IndexWriter(tmp_path, 2) as writer:
        (tmp_path / "00000009-0.segment.safetensors").write_bytes(b"left over")
        with monkeypatch.context() as patch:
            patch.setattr(writers.Path, "unlink", refuses)
            writer.add(["a"], torch.ones(1, 2))
        assert len(writer) == len(Index(tmp_path)) == 1


def test_foreign_files_are_left_alone(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(FileExistsError, match="model.safetensors"):
        IndexWriter(tmp_path, 2)
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("dtype, seeds", [("float16", range(40)), ("residual4", range(40, 55))])
def test_kills_lose_nothing(tmp_path, dtype, seeds):
    for seed in seeds:
        histories.killed_once(tmp_path / str(seed), seed, dtype)


def test_a_kill_between_rename_and_answer_would_be_noticed(tmp_path, monkeypatch):
    """The check has teeth: a writer that acknowledges before its manifest is there loses something."""

    def careless(budget, die_after=histories.die_after):
        die_after(budget)
        Manifest.commit = lambda self, folder: None  # of the process that dies

    monkeypatch.setattr(histories, "die_after", careless)
    with pytest.raises((AssertionError, FileNotFoundError)):
        histories.killed_once(tmp_path, 0)


def test_fuzzed_files_never_crash(tmp_path):
    rounds = 1500
    assert damaged_index.fuzzed(tmp_path, rounds) > 0.9 * rounds  # the rest tells lies that do no harm


def test_attributes_that_are_no_objects_are_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("modernbert_fast.retrieval.segment.json", SimpleNamespace(dumps=lambda row: "[3]"))
        with IndexWriter(tmp_path, 2) as writer:
            writer.add(["a"], torch.ones(1, 2), attributes=[{"b": 1}])
    with pytest.raises(ValueError, match=r"segment.safetensors.*not objects"):
        Index(tmp_path).search(torch.ones(1, 2), where={"b": 1})


def test_every_flipped_byte_is_found_and_named(tmp_path):
    fill(tmp_path, documents=3, longest=2)
    with IndexWriter(tmp_path) as writer:
        writer.delete(["doc 1"])
    for path in tmp_path.iterdir():
        good = path.read_bytes()
        for at in range(len(good)):
            path.write_bytes(good[:at] + bytes([good[at] ^ 16]) + good[at + 1 :])
            try:
                found = Index(tmp_path).verify()
            except ValueError as error:
                found = [str(error)]
            harmless = path.suffix == ".json" and same_json(path.read_bytes(), good)
            assert harmless or any(path.name in sentence for sentence in found), (path.name, at)
        path.write_bytes(good)


def same_json(data, good):
    """Whether a flip turned one kind of blank into another."""
    try:
        return json.loads(data) == json.loads(good)
    except ValueError:
        return False


def test_a_file_that_goes_while_it_is_opened_is_a_newer_state(tmp_path, monkeypatch):
    """Its header was read, and then a writer merged it away."""
    fill(tmp_path)
    opened = files.safetensors.safe_open

    def late(path, framework):
        if writer is not None:
            merge()
            raise RuntimeError("unable to open file")  # of torch, which maps it after safetensors has looked at it
        return opened(path, framework)

    def merge():
        nonlocal writer
        with monkeypatch.context() as patch:
            patch.setattr(files.safetensors, "safe_open", opened)
            writer.merge()
        writer = None

    with IndexWriter(tmp_path) as writer:
        writer.delete(["doc 1"])
        monkeypatch.setattr(files.safetensors, "safe_open", late)
        index = Index(tmp_path)
    assert len(index) == 59 and len(index.segments) == 1


@pytest.mark.parametrize("dtype, readers, seconds, enough", [("float16", 8, 5, 40), ("residual4", 2, 3, 12)])
def test_readers_go_on_while_one_writes(tmp_path, dtype, readers, seconds, enough):
    checked, seen, states = histories.read_and_write(tmp_path, seconds, readers, dtype)
    # How many is a matter of what else the machine does; each reader went on from one state to others.
    assert len(seen) == readers and min(seen) > 1 and states > 16 and checked > enough


def test_a_reader_that_mixes_states_would_be_noticed(tmp_path, monkeypatch):
    """The check has teeth: documents of one state with the generation of another give wrong answers."""

    def read(index, former=Index._read):
        segments = index.segments
        former(index)
        index.segments = segments if segments and random.random() < 0.5 else index.segments

    monkeypatch.setattr(Index, "_read", read)
    with pytest.raises(AssertionError):
        histories.read_and_write(tmp_path, seconds=2, readers=2)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ids": ["a", "a"]}, "given twice"),
        ({"ids": ["a", ""]}, "an id is a string"),
        ({"ids": ["a", 3]}, "an id is a string"),
        ({"ids": ["a", "x" * 2000]}, "an id is a string"),
        ({"ids": ["a", "old"]}, "is in the index"),
        ({"ids": ["a"]}, "1 ids for 2 documents"),
        ({"vectors": torch.ones(2, 3)}, "vectors"),
        ({"vectors": torch.tensor([[1.0, 2], [1, float("nan")]])}, r"document 1 \('b'\)"),
        ({"vectors": torch.tensor([[1.0, 2], [1, 1e5]])}, "too large"),
        ({"cu_seqlens": torch.tensor([0, 2, 1], dtype=torch.int32)}, "cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0, 1, 3], dtype=torch.int32)}, "cu_seqlens"),
        ({"attributes": [{}]}, "1 attributes for 2 documents"),
        ({"attributes": [{}, {"a": {1, 2}}]}, "document 1: attributes"),
        ({"attributes": [{}, {1: 2}]}, "document 1: attributes"),
    ],
)
def test_a_bad_document_changes_nothing(tmp_path, change, message):
    with IndexWriter(tmp_path, 2) as writer:
        writer.add(["old"], torch.ones(1, 2))
        given = {"ids": ["a", "b"], "vectors": torch.ones(2, 2)}
        with pytest.raises((ValueError, TypeError), match=message):
            writer.add(**{**given, **change})
        assert [hit.id for hit in Index(tmp_path).search(torch.ones(1, 2))[0]] == ["old"]
        writer.add(**given)
        assert len(Index(tmp_path)) == 3


def test_bad_requests(tmp_path):
    with pytest.raises(FileNotFoundError):
        Index(tmp_path)
    with pytest.raises(FileNotFoundError, match="no index"):
        IndexWriter(tmp_path)
    with pytest.raises(ValueError, match="dtype"):
        IndexWriter(tmp_path, 2, "float32")
    with pytest.raises(ValueError, match="dim"):
        IndexWriter(tmp_path, 0)
    with IndexWriter(tmp_path, 2) as writer:
        with pytest.raises(BlockingIOError, match="somebody else"):
            IndexWriter(tmp_path)
        assert Index(tmp_path).search(torch.ones(3, 2)) == [[], [], []]
        writer.add(["a"], torch.ones(1, 2))
    with pytest.raises(ValueError, match="dim is 2"):
        IndexWriter(tmp_path, 3)
    with pytest.raises(ValueError, match="dtype is float16"):
        IndexWriter(tmp_path, 2, "int8")
    index = Index(tmp_path)
    with pytest.raises(ValueError, match="queries"):
        index.search(torch.ones(1, 3))
    with pytest.raises(ValueError, match="finite"):
        index.search(torch.full((1, 2), float("nan")))
    assert index.search(torch.ones(1, 2), where={"tags": {"u"}}) == [[]]
    with pytest.raises(ValueError, match="k must"):
        index.search(torch.ones(1, 2), k=0)
    with pytest.raises(ValueError, match="cu_queries"):
        index.search(torch.ones(1, 2), torch.tensor([0, 5], dtype=torch.int32))
    assert index.search(torch.ones(1, 2))[0][0].id == "a"


def test_queries_too_large_for_the_device_are_refused(tmp_path, monkeypatch):
    """As a GPU rounds them: finite before, not after."""
    fill(tmp_path / "index")
    index, query = Index(tmp_path / "index"), torch.full((1, D), 70000.0)
    assert index.search(query)
    with pytest.raises(ValueError, match="finite in torch.float32"):
        index.search(torch.full((1, D), 1e300, dtype=torch.float64))
    monkeypatch.setattr("modernbert_fast.dispatch.host_readable", lambda x: False)
    with pytest.raises(ValueError, match="finite in torch.float16"):
        index.search(query)
    assert index.search(query / 2)
