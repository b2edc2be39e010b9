"""The small model of the package: stock transformers loads it, and its figures hold on text that it has not seen."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import modernbert_fast as mf
from modernbert_fast import checkpoint

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
from transformers import AutoModelForMaskedLM, AutoTokenizer  # noqa: E402

from modernbert_fast.commands import corpus, meaning  # noqa: E402
from modernbert_fast.tiny import FOLDER  # noqa: E402
from modernbert_fast.training import held_out  # noqa: E402
from modernbert_fast.training.documents import read_documents  # noqa: E402
from modernbert_fast.training.tokenizer import save_tokenizer, train_tokenizer  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests" / "training" / "tiny_test.jsonl"
FIGURES = json.loads((FOLDER / "figures.json").read_text())

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny_corpus():
    """The program that makes the corpus."""
    spec = importlib.util.spec_from_file_location("tiny_corpus", ROOT / "tools" / "tiny" / "corpus.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model_and_tokenizer():
    return meaning.load()


def test_stock_transformers_loads_it_and_gives_the_same():
    stock = AutoModelForMaskedLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    texts = [text for _, text in corpus.manual_paragraphs()[:6]] + [meaning.PROMPTS[0]]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    kept = batch["attention_mask"].bool()
    bare = mf.ModernBertWithHead.from_pretrained(FOLDER, "ModernBertForMaskedLM", torch.float32)
    with torch.no_grad():
        expected = stock(**batch).logits[kept]
        packed = bare(mf.PackedBatch.from_padded(kept.shape, kept), batch["input_ids"][kept])
        accelerated = mf.accelerate(stock)(**batch).logits[kept]
    for actual in (packed, accelerated):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.5


def test_weights_are_small_and_bf16():
    assert (FOLDER / "model.safetensors").stat().st_size <= 8_000_000
    tensors = {tensor.dtype for tensor in checkpoint.stored_tensors(FOLDER)}
    assert tensors == {"BF16"}


@pytest.mark.parametrize(
    "prompt, word",
    [
        (meaning.PROMPTS[0], "exist"),
        (meaning.PROMPTS[1], "instance"),
        (meaning.PROMPTS[2], "documentation"),
        ("Return a [MASK] of the array.", "copy"),
        ("Raise an [MASK] if the file cannot be opened.", "error"),
    ],
)
def test_it_fills_masks(model_and_tokenizer, prompt, word):
    (found, share), *_ = meaning.fill_mask(*model_and_tokenizer, prompt)
    assert found == word and share > 0.4


def test_it_finds_what_is_alike(model_and_tokenizer):
    paragraphs = [
        "Return a copy of the string with all of its characters converted to lowercase.",
        "Open a file and return a file object. The file is closed when the block is left.",
        "Compute the inverse of a square matrix. The matrix must not be singular.",
        "Called when an exception was raised and no handler was found for it.",
    ]
    queries = ["strings in upper case", "read a file", "the determinant of a matrix", "handle an error"]
    found = [meaning.vectors(*model_and_tokenizer, texts) for texts in (queries, paragraphs)]
    assert meaning.nearest(*found) == [0, 1, 2, 3]


def test_held_out_text():
    """A quarter of the test split, whose files were never trained on; every pair in both orders."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    guess = tokenizer.convert_tokens_to_ids(FIGURES["commonest_token"])
    found = held_out.evaluate(FOLDER, list(read_documents(SAMPLE)), guess)
    assert found["pairs"] >= 400 and found["masked_tokens"] >= 4000
    assert found["masked_accuracy"] >= 3 * found["unigram_accuracy"] > 0.1, found
    assert min(found["order_accuracy"], FIGURES["order_accuracy"]) > 0.75, found


def test_the_logged_perplexity_falls():
    rows = [json.loads(line) for line in (FOLDER / "history.jsonl").read_text().splitlines()]
    curve = [row["eval_perplexity"] for row in rows if "eval_perplexity" in row]
    assert len(curve) >= 5 and curve[-1] < curve[0] / 5
    assert curve == sorted(curve, reverse=True)


@pytest.mark.parametrize("trained_here", [False, True])
def test_order_does_not_show_in_the_first_token(trained_here, tmp_path):
    """A sentence has the same tokens anywhere in a document, and no lone space stands before [MASK]."""
    first, second = "Return the sum.", "The axis is optional."
    folder = FOLDER
    if trained_here:
        folder = tmp_path
        save_tokenizer(train_tokenizer([f"{first} {second}"] * 3, 300, prefix_space=True), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f"{first} {second}", first, second)]
    assert ids[0] == ids[1] + ids[2]
    masked = tokenizer("Return the [MASK].", add_special_tokens=False)["input_ids"]
    assert masked == ids[1][: len(masked) - 2] + [tokenizer.mask_token_id, ids[1][-1]]


def test_corpus_keeps_prose_alone(tiny_corpus):
    source = b'''
def f(x):
    """Return the largest of the elements of an array.

    Parameters
    ----------
    x : array_like, shape (n,)
        The array of which the largest element is wanted, see :func:`numpy.max`.

    Notes
    -----
    This is *not* the function that one should use where the array may be empty.

    An example of it is this::

        This line of a literal block is not to be read as one of the sentences.

    >>> f([1, 2])
    2

    | a table | of things | that one may find |
    - The first point of a list is a sentence too.
    """
    # A comment of several lines is prose as well, if it
    # is made of sentences.
    return max(x)
'''
    found = [tiny_corpus.prose(block) for text in tiny_corpus.strings(source) for block in tiny_corpus.blocks(text)]
    assert [text for text in found if text] == [
        "Return the largest of the elements of an array.",
        "The array of which the largest element is wanted, see numpy.max.",
        "This is not the function that one should use where the array may be empty.",
        "The first point of a list is a sentence too.",
        "A comment of several lines is prose as well, if it is made of sentences.",
    ]


def test_corpus_knows_copies(tiny_corpus):
    seen = tiny_corpus.Seen()
    text = "The {} model outputs raw hidden states without any specific head on top of all its layers."
    assert seen.share(text.format("BertModel")) == 0
    assert seen.share(text.format("GPT2Model")) == 1
    assert seen.share("An entirely different sentence about the parsing of command line options and nothing else.") == 0


def test_demo_shows_both(capsys):
    meaning.show()
    shown = capsys.readouterr().out
    for prompt in (*meaning.PROMPTS, *meaning.QUERIES):
        assert prompt in shown
    assert f"{len(corpus.manual_paragraphs())} paragraphs" in shown and "%" in shown
