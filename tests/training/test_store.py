"""Token stores: what went in comes out, by whomever it was built; damage has a name."""

import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

from modernbert_fast.commands.corpus import manual_texts
from modernbert_fast.training import store as building
from modernbert_fast.training.dataset import TextDataset
from modernbert_fast.training.sampler import pieces
from modernbert_fast.training.sentences import sentence_starts
from modernbert_fast.training.store import TokenStore, build_store
from modernbert_fast.training.tokenizer import save_tokenizer, train_tokenizer

PROSE = "It ends. Another begins! Mr. Smith met J. R. Jones. “Quoted.” Ünd 語 [MASK] [SEP]. The end"
DOCUMENTS = [*manual_texts()[:12], "", " \n\t ", PROSE, "x"]
KEPT = [document for document in DOCUMENTS if document.strip()]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(DOCUMENTS, vocab_size=400), folder)
    return folder


@pytest.fixture(scope="module")
def built(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    original = building.CHUNK_TEXTS
    building.CHUNK_TEXTS = 3  # several chunks a shard, several shards
    try:
        return build_store(iter(DOCUMENTS), tokenizer, tmp_path_factory.mktemp("built") / "store", shard_tokens=6000)
    finally:
        building.CHUNK_TEXTS = original


@pytest.fixture
def copy(built: TokenStore, tmp_path: Path) -> Path:
    """A store that a test may damage."""
    return shutil.copytree(built.folder, tmp_path / "copy")


def test_what_went_in_comes_out(built, tokenizer):
    from transformers import AutoTokenizer

    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (tokenizer, built.folder / "tokenizer")]
    assert len(list(built.folder.glob("*.tokens.npy"))) >= 3
    assert (len(built), built.skipped, built.vocab_size) == (len(KEPT), 2, 400)
    assert (built.cls_id, built.sep_id, built.mask_id, built.special_ids) == (1, 2, 4, (0, 1, 2, 3, 4))
    for number, document in enumerate(KEPT):
        ids = built.tokens(number)
        assert ids.dtype == np.int64 and ids.size == built.lengths[number]
        assert not set(built.special_ids) & set(ids.tolist())  # "[MASK]" in a document is text
        assert all(loaded.decode(ids) == document for loaded in tokenizers)
        assert np.array_equal(built.tokens(number, 1, ids.size), ids[1:])


def test_sentences_are_the_splitters(built):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built.folder / "tokenizer")
    several = 0
    for number, document in enumerate(KEPT):
        starts = built.sentences(number)
        parts = [tokenizer.decode(part).strip() for part in np.split(built.tokens(number), starts[1:])]
        bounds = [*sentence_starts(document), len(document)]
        expected = [document[a:b].strip() for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        assert parts == expected
        firsts = [tokenizer.decode([token]) for token in built.tokens(number)[starts[1:]]]
        assert all(first.strip() for first in firsts)  # white space alone belongs to the sentence before
        several += len(parts) > 3
    assert several > 5 and starts.tolist() == [0]


def test_workers_change_nothing(built, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "CHUNK_TEXTS", 3)
    other = build_store(iter(DOCUMENTS), tokenizer, tmp_path / "new" / "store", shard_tokens=6000, workers=2)
    files = sorted(path.name for path in built.folder.iterdir() if path.is_file())
    assert files == sorted(path.name for path in other.folder.iterdir() if path.is_file())
    for name in files:
        assert (built.folder / name).read_bytes() == (other.folder / name).read_bytes(), name


def test_a_worker_that_dies_is_reported(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "CHUNK_TEXTS", 1)

    def documents():
        yield from ["fine"] * 3
        for worker in multiprocessing.active_children():
            worker.kill()
        yield from ["late"] * 10

    with pytest.raises(OSError, match="a process that tokenises has died"):
        build_store(documents(), tokenizer, tmp_path / "store", workers=1)
    assert not list(tmp_path.iterdir())


def test_pickles_as_its_path(built):
    data = pickle.dumps(built)
    assert len(data) < 500
    assert np.array_equal(pickle.loads(data).tokens(3), built.tokens(3))


def test_large_vocabularies_take_four_bytes(tokenizer, tmp_path):
    definition = json.loads((tokenizer / "tokenizer.json").read_text())
    definition["model"]["vocab"]["x"] = 70_000
    large = shutil.copytree(tokenizer, tmp_path / "large")
    (large / "tokenizer.json").write_text(json.dumps(definition))
    store = build_store(["x"], large, tmp_path / "store", sentences=False)
    assert store.vocab_size == 70_001 and store.tokens(0).tolist() == [70_000]
    assert np.load(store.folder / "00000.tokens.npy").dtype == np.uint32
    with pytest.raises(ValueError, match="built without sentences"):
        store.sentences(0)


def test_features(built):
    cut = pieces(built.lengths, 100)
    dataset = TextDataset(built, cut)
    assert dataset.lengths.max() == 100 and (dataset.lengths - 2).sum() == built.lengths.sum()
    keys = set()
    for piece in range(0, len(dataset), 7):
        for epoch in (0, 1, -1):
            feature = dataset[piece, epoch]
            document, start, stop = cut[piece]
            expected = [1, *built.tokens(document, start, stop), 2]
            assert feature["input_ids"].tolist() == expected and len(expected) == dataset.lengths[piece]
            assert (feature["key"] < 0) == (epoch < 0)
            keys.add(feature["key"])
    assert len(keys) == 3 * len(range(0, len(dataset), 7))


def test_an_interrupted_build_leaves_no_store(tokenizer, tmp_path):
    def documents():
        yield "fine"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        build_store(documents(), tokenizer, tmp_path / "store")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        TokenStore(tmp_path / "store")


def test_a_build_that_was_killed_does_not_open_and_is_in_nobodys_way(copy, tokenizer, tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    left, other, running = (tmp_path / f".store.unfinished-{n}" for n in (os.getpid(), dead.pid, os.getppid()))
    for folder in (left, other, running):
        shutil.copytree(copy, folder)
    assert len(build_store(["fine"], tokenizer, tmp_path / "store")) == 1
    assert not left.exists() and not other.exists() and running.exists()
    (copy / "manifest.json").unlink()  # it is written last
    with pytest.raises(FileNotFoundError, match="manifest.json"):
        TokenStore(copy)


@pytest.mark.parametrize(
    "documents, options, text",
    [
        ([], {}, "no document with a token among 0"),
        (["", "  "], {}, "no document with a token among 2"),
        (["fine", "\ud800"], {}, "document 1 is not valid Unicode"),
        (["fine"], {"shard_tokens": 0}, "shard_tokens 1 to"),
        (["fine"], {"workers": -1}, "workers must be"),
    ],
)
def test_bad_builds(tokenizer, tmp_path, documents, options, text):
    with pytest.raises(ValueError, match=text):
        build_store(documents, tokenizer, tmp_path / "store", **options)
    assert len(build_store(["fine"], tokenizer, tmp_path / "store")) == 1
    with pytest.raises(FileExistsError, match="is not empty"):
        build_store(["fine"], tokenizer, tmp_path / "store")


def test_a_tokenizer_without_a_mask(tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer / "tokenizer.json"), cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="a tokenizer without a mask token"):
        build_store(["fine"], tmp_path / "bare", tmp_path / "store")


def rewrite(change):
    """Damage to an array that is still an array."""

    def damage(path: Path) -> None:
        array = np.load(path)
        np.save(path, change(array))

    return damage


def flip(array: np.ndarray) -> np.ndarray:
    array[[1, 2]] = array[[2, 1]]
    return array


def beyond(array: np.ndarray) -> np.ndarray:
    array[:] = 400
    return array


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize(
    "name, damage, text",
    [
        ("00000.tokens", cut, "00000.tokens.npy: not a whole array"),
        ("00000.tokens", extend, "bytes, expected"),
        ("00001.tokens", lambda path: path.write_bytes(b""), "00001.tokens.npy: not a whole array"),
        ("00000.tokens", lambda path: path.write_bytes(b"no array at all"), "00000.tokens.npy: not a whole array"),
        ("00000.tokens", rewrite(lambda array: array[:-1]), "the manifest says"),
        ("00000.tokens", rewrite(lambda array: array.astype(np.int64)), "int64, the manifest says"),
        ("00000.tokens", rewrite(lambda array: array[None]), "the manifest says"),
        ("00000.documents", rewrite(flip), "00000.documents.npy: damaged bounds"),
        ("00000.documents", rewrite(lambda array: array + np.uint32(1)), "00000.documents.npy: damaged bounds"),
        ("00000.documents", cut, "00000.documents.npy: not a whole array"),
        ("00000.sentences", rewrite(lambda array: array[:-1]), "the manifest says"),
    ],
)
def test_damaged_shards_do_not_open(copy, name, damage, text):
    damage(copy / f"{name}.npy")
    with pytest.raises(ValueError, match=text):
        TokenStore(copy)


def test_a_missing_shard(copy):
    (copy / "00001.tokens.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"00001\.tokens\.npy"):
        TokenStore(copy)


def test_what_is_checked_as_it_is_read(copy, built):
    rewrite(beyond)(copy / "00000.tokens.npy")
    rewrite(flip)(copy / "00000.sentences.npy")
    damaged = TokenStore(copy)
    with pytest.raises(ValueError, match=r"00000\.tokens\.npy: id 400 in document 0, of 400"):
        damaged.tokens(0)
    with pytest.raises(ValueError, match=r"00000\.sentences\.npy: damaged at document 0"):
        damaged.sentences(0)
    last = len(built) - 1
    assert np.array_equal(damaged.tokens(last), built.tokens(last)) and damaged.sentences(last).size
    for bad in [(-1,), (len(built),), (0, -1), (0, 5, 4), (0, 0, 10**6)]:
        with pytest.raises(IndexError, match="document"):
            built.tokens(*bad)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"version": 2}, "version 2, this package reads 1"),
        ({"format": "other"}, "not the manifest of a token store"),
        ({"vocab_size": -1}, "'vocab_size'"),
        ({"mask_id": 400}, "'mask_id'"),
        ({"special_ids": [1, 999]}, "'special_ids'"),
        ({"special_ids": None}, "'special_ids'"),
        ({"skipped": 1.5}, "'skipped'"),
        ({"sentences": "yes"}, "'sentences'"),
        ({"shards": []}, "'shards'"),
        ({"shards": [3]}, "'shards'"),
        ({"shards": [{"documents": 1, "tokens": 0, "sentences": 0}]}, "'tokens'"),
        ({"shards": [{"documents": 1, "tokens": 2**40, "sentences": 0}]}, "'tokens'"),
    ],
)
def test_bad_manifests(copy, change, text):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(ValueError, match=f"manifest.json.*{text}"):
        TokenStore(copy)
