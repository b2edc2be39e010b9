"""Documents from files, folders and datasets; sentences; a tokenizer of one's own."""

import json
import time
from pathlib import Path

import pytest

from modernbert_fast.training.documents import read_documents
from modernbert_fast.training.sentences import sentence_starts

TEXTS = ["First text.\nIts second line.", "Zweiter Text: ü", ""]


def write(folder: Path, name: str, texts: list[str], field: str = "text") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    elif path.suffix == ".csv":
        path.write_text("".join(f'"{row}"\n' for row in [field, *texts]))
    elif path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        parquet.write_table(pyarrow.table({field: texts}), path)
    else:
        path.write_text("\n".join(texts))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_file_of_rows(tmp_path, suffix):
    assert list(read_documents(write(tmp_path, f"a.{suffix}", TEXTS))) == TEXTS
    assert list(read_documents(write(tmp_path, f"b.{suffix}", TEXTS, "body"), field="body")) == TEXTS


def test_a_txt_file_has_a_document_a_line(tmp_path):
    assert list(read_documents(write(tmp_path, "a.txt", ["one", "", "two"]))) == ["one", "", "two"]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    write(tmp_path, "b.jsonl", ["third", "fourth"])
    write(tmp_path, "a/2.txt", ["second, with", "", "an empty line"])
    write(tmp_path, "a/1.txt", ["first"])
    write(tmp_path, ".git/hidden.txt", ["hidden"])
    write(tmp_path, "README.md", ["not of a known kind"])
    assert list(read_documents(tmp_path)) == ["first", "second, with\n\nan empty line", "third", "fourth"]


@pytest.mark.parametrize("split", ["", "::train"])
def test_a_dataset(tmp_path, split):
    pytest.importorskip("datasets")
    write(tmp_path, "rows.jsonl", TEXTS, "body")
    source = f"hf:{tmp_path}{split}"
    assert list(read_documents(source, field="body")) == TEXTS
    with pytest.raises(ValueError, match=r"row 1: no field 'text' among body"):
        list(read_documents(source))


@pytest.mark.parametrize("source", ["hf:", "hf:a:b:c:d"])
def test_names_of_datasets(source):
    with pytest.raises(ValueError, match=r"is not hf:NAME\[:CONFIG\[:SPLIT\]\]"):
        list(read_documents(source))


@pytest.mark.parametrize(
    "name, content, text",
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', "a.jsonl, line 2: the text is int"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "a.jsonl, line 1: no field 'text'"),
        ("a.csv", b"body\nx\n", "a.csv, line 2: no field 'text' among body"),
        ("a.csv", b'text,b\n"x"\n', "a.csv, line 2: has 1 fields, 2 were expected: text, b"),
        ("a.csv", b'text\n"x', "a.csv, line 2: unexpected end of data"),
        ("a.csv", b"text\nx\0y\n", None),
        ("a.parquet", b"PAR1 and then nothing", "a.parquet: not a parquet file"),
        ("a.txt", b"fine\n\xff\xfe\n", "a.txt, line 2: not UTF-8"),
        ("a.pdf", b"", "a.pdf: cannot read .pdf"),
        ("folder/a.txt", b"\xff", "a.txt: not UTF-8"),
        ("folder/a.pdf", b"", "folder: no file that ends in .txt"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, text):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    source = tmp_path / name.split("/")[0]
    if text is None:  # odd, but csv reads it
        assert all(isinstance(document, str) for document in read_documents(source))
        return
    with pytest.raises(ValueError, match=text):
        list(read_documents(source))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        list(read_documents(tmp_path / "nowhere.txt"))


@pytest.mark.parametrize(
    "sentences",
    [
        ["One sentence."],
        ["It ends. ", "Another begins! ", "(Does it?) ", '"Yes," he said. ', "No"],
        ["Mr. Smith met J. R. Jones, e.g. in St. Louis, at 3.15 p.m. on Jan. 5. ", "They left."],
        ["A heading\n\n", "1. The first item of a list.\n", "2. The second. ", "In 1990. "],
        ["He wrote x.y and went on... and on. ", "So did I. ", "Then the end."],
        ["“Quoted.” ", "‘Again?’ ", "Être ou ne pas être. ", "1990 was a year."],
        ["これは文です。", "次の文です！", "「終わり。」", "はい"],
        [" \n leading space. ", "Done."],
    ],
)
def test_sentences(sentences):
    text = "".join(sentences)
    starts = sentence_starts(text)
    assert [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)] == sentences


def test_a_text_without_sentences():
    assert sentence_starts("") == sentence_starts("   ") == sentence_starts("word " * 1000) == [0]


def test_long_runs_of_full_stops_take_no_longer_than_other_text():
    begin = time.monotonic()
    assert sentence_starts("a" + "." * 200_000 + "b") == [0]
    assert sentence_starts("a" + "." * 200_000 + " B") == [0, 200_002]
    assert time.monotonic() - begin < 5  # quadratic: half an hour


def test_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    from modernbert_fast.commands.corpus import manual_texts
    from modernbert_fast.training.tokenizer import save_tokenizer, train_tokenizer

    texts = manual_texts()[:10]
    trained = train_tokenizer(iter(texts), vocab_size=400)
    assert trained.to_str() == train_tokenizer(texts, vocab_size=400).to_str()
    save_tokenizer(trained, tmp_path / "new", max_length=16)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    ids = loaded("Hello", "world")
    assert set(ids) == {"input_ids", "attention_mask"} and len(loaded) == 400
    assert loaded.decode(ids["input_ids"]) == "[CLS]Hello[SEP]world[SEP]"
    assert (loaded.unk_token_id, loaded.cls_token_id, loaded.sep_token_id, loaded.pad_token_id) == (0, 1, 2, 3)
    assert loaded("a [MASK]")["input_ids"].count(loaded.mask_token_id) == 1
    assert len(loaded("word " * 100, truncation=True)["input_ids"]) == 16
    assert loaded.decode(loaded("naïve 語\n\t x", add_special_tokens=False)["input_ids"]) == "naïve 語\n\t x"
    with pytest.raises(ValueError, match="vocab_size must be at least 261, got 260"):
        train_tokenizer(texts, vocab_size=260)
