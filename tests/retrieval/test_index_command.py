"""modernbert-fast index: texts in, the right texts found, with one vector a text and with many."""

import json

import pytest
import torch

from modernbert_fast.cli import main
from modernbert_fast.commands.corpus import manual_texts
from modernbert_fast.retrieval import IndexWriter
from modernbert_fast.retrieval.manifest import DTYPES

st = pytest.importorskip("sentence_transformers", "6.0")
pytestmark = pytest.mark.usefixtures("one_thread", "keep_threads")


@pytest.fixture(scope="module")
def texts():
    return [text[:300] for text in manual_texts()[:12]]


@pytest.fixture(scope="module", params=["single", "multi"])
def model(request, tmp_path_factory, tiny_checkpoint):
    """A checkpoint of sentence-transformers with random weights."""
    from tokenizers import Tokenizer

    from modernbert_fast.training.tokenizer import save_tokenizer

    base = tmp_path_factory.mktemp("base")
    for name in ("config.json", "model.safetensors"):
        (base / name).write_bytes((tiny_checkpoint / name).read_bytes())
    save_tokenizer(Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json")), base, max_length=128)
    folder = tmp_path_factory.mktemp(request.param)
    kind = st.SentenceTransformer if request.param == "single" else st.MultiVectorEncoder
    torch.manual_seed(0)
    kind(str(base), device="cpu").save_pretrained(str(folder))
    return folder


@pytest.fixture
def source(tmp_path, texts):
    path = tmp_path / "texts.jsonl"
    rows = [{"text": text, "name": f"t{i}", "parity": str(i % 2)} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(capsys, *words):
    code = main(["index", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def found(out):
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("store", DTYPES)
def test_every_text_finds_itself(tmp_path, capsys, model, source, texts, store):
    index = tmp_path / "index"
    options = ("--id", "name", "--attributes", "parity,name")
    code, out, err = run(
        capsys, "build", index, source, "--model", model, "--store", store, "--batch", 5, "--device", "cpu", *options
    )
    assert code == 0, err
    assert "12 texts added, 12 in all" in out
    code, out, _ = run(capsys, "search", index, texts[3], texts[8], "-k", 2, "--device", "cpu")
    hits = found(out)
    assert code == 0 and [hits[0]["id"], hits[2]["id"]] == ["t3", "t8"]
    assert hits[0]["score"] > hits[1]["score"] and hits[0]["attributes"]["name"] == "t3"
    _, out, _ = run(capsys, "search", index, texts[3], "-k", 20, "--where", "parity=0", "--device", "cpu")
    assert sorted(hit["id"] for hit in found(out)) == ["t0", "t10", "t2", "t4", "t6", "t8"]
    code, out, _ = run(capsys, "delete", index, "t3", "t99")
    assert (code, "1 deleted, 11 left" in out) == (0, True)
    assert run(capsys, "merge", index)[0] == 0
    code, out, _ = run(capsys, "verify", index)
    assert (code, out) == (0, f"{index}: 11 texts in 1 segments, nothing damaged\n")
    code, out, _ = run(capsys, "add", index, source, "--replace", "--device", "cpu", *options)
    assert "12 texts added, 11 replaced, 12 in all" in out
    _, out, _ = run(capsys, "search", index, texts[3], "-k", 1, "--device", "cpu")
    assert found(out)[0]["id"] == "t3"


def test_a_stopped_build_goes_on(tmp_path, capsys, model, source, monkeypatch):
    index, add, calls = tmp_path / "index", IndexWriter.add, []

    def stopped(self, *arguments, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(add(self, *arguments, **options))

    build = ("build", index, source, "--model", model, "--batch", 4, "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(IndexWriter, "add", stopped)
        assert run(capsys, *build)[0] == 130
    code, _, err = run(capsys, *build)
    assert code == 2 and "--resume" in err
    code, out, _ = run(capsys, *build, "--resume")
    assert code == 0 and "4 texts added, 12 in all" in out


def test_an_id_twice_is_refused_in_any_batch(tmp_path, capsys, model, source):
    source.write_text(source.read_text() * 2)
    build = ("build", tmp_path / "index", source, "--model", model, "--id", "name", "--batch", 12, "--device", "cpu")
    code, _, err = run(capsys, *build)
    assert code == 2 and "is in the index" in err and "12 texts before" in err


def test_pickled_weights_are_refused(tmp_path, capsys, model, source):
    torch.save({}, model / "pytorch_model.bin")
    weights = (model / "model.safetensors").rename(model / "elsewhere")
    try:
        code, _, err = run(capsys, "build", tmp_path / "index", source, "--model", model, "--device", "cpu")
        assert code == 2 and "safetensors only" in err
    finally:
        weights.rename(model / "model.safetensors")
        (model / "pytorch_model.bin").unlink()


def test_requests_that_cannot_be_served(tmp_path, capsys, model, source):
    index = tmp_path / "index"
    assert "there is no index" in run(capsys, "delete", index, "a")[2]
    assert run(capsys, "search", index, "a", "--device", "cpu")[0] == 2
    assert "no field" in run(capsys, "build", index, source, "--model", model, "--field", "x", "--device", "cpu")[2]
    plain = tmp_path / "plain.txt"
    plain.write_text("a text\n")
    assert "texts alone" in run(capsys, "build", index, plain, "--model", model, "--id", "x", "--device", "cpu")[2]
    with IndexWriter(tmp_path / "bare", 2):
        pass
    assert "give --model" in run(capsys, "search", tmp_path / "bare", "a", "--device", "cpu")[2]
    run(capsys, "build", index, source, "--model", model, "--device", "cpu")
    assert "is in the index" in run(capsys, "add", index, source, "--device", "cpu")[2]
    assert "KEY=VALUE" in run(capsys, "search", index, "a", "--where", "x", "--device", "cpu")[2]
    (segment,) = index.glob("*.segment.safetensors")
    data = bytearray(segment.read_bytes())
    data[-5] ^= 1
    segment.write_bytes(data)
    code, out, _ = run(capsys, "verify", index)
    assert code == 1 and segment.name in out
