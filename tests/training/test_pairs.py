"""Pairs for sentence order: whole sentences, exact lengths, the right label, drawn from the seed and the key alone."""

import pickle

import hf_models as hf
import numpy as np
import pytest
import torch

import modernbert_fast as mf
from modernbert_fast.training.loader import PackedLoader
from modernbert_fast.training.masking import MaskedLMCollator
from modernbert_fast.training.pairs import PairDataset, pair_pieces
from modernbert_fast.training.sampler import PackedSampler
from modernbert_fast.training.store import build_store
from modernbert_fast.training.tokenizer import save_tokenizer, train_tokenizer

CLS, SEP = 900_001, 900_002


class Store:
    """What pairs read of a TokenStore; token t of document d is 1000 d + t."""

    cls_id, sep_id, folder = CLS, SEP, "a store"

    def __init__(self, sentences):
        """The lengths of the sentences of each document."""
        self.starts = [np.cumsum([0, *lengths[:-1]]) for lengths in sentences]
        self.lengths = np.array([sum(lengths) for lengths in sentences], np.int64)

    def __len__(self):
        return len(self.lengths)

    def tokens(self, document, start=0, stop=None):
        return 1000 * document + np.arange(self.lengths[document])[start:stop]

    def sentences(self, document):
        return self.starts[document]


@pytest.fixture
def store():
    draw = np.random.default_rng(0)
    return Store([draw.integers(3, 30, size=draw.integers(1, 20)).tolist() for _ in range(40)])


def segments(store, ids):
    """(document, start, stop) of both segments, which hold whole runs of tokens."""
    assert ids[0] == CLS and ids[-1] == SEP and ids.dtype == np.int64
    middle = int((ids == SEP).argmax())
    found = []
    for run in (ids[1:middle], ids[middle + 1 : -1]):
        document, start = divmod(int(run[0]), 1000)
        assert (np.diff(run) == 1).all()
        found.append((document, start, start + len(run)))
    for document, start, stop in found:
        assert {start, stop} <= {*store.sentences(document).tolist(), int(store.lengths[document])}
    return found


def test_pieces_are_runs_of_whole_sentences_as_long_as_fit():
    store = Store([[5], [4, 4, 4, 4, 4], [20, 3, 3], [4, 20, 4], [2, 3, 5, 9]])
    assert pair_pieces(store, 13).tolist() == [[1, 0, 8], [1, 8, 16], [2, 20, 26], [4, 0, 10]]
    assert pair_pieces(store, 27).tolist() == [[1, 0, 20], [2, 0, 23], [3, 0, 24], [4, 0, 19]]


def test_what_makes_no_pair_is_counted(caplog):
    pair_pieces(Store([[5], [4, 4, 4], [6, 6]]), 15)
    assert "leave out 5 of 29 tokens" in caplog.text
    caplog.clear()
    pair_pieces(Store([[4, 4, 4], [6, 6]]), 15)
    assert not caplog.text


@pytest.mark.parametrize("ways", [2, 3])
def test_pairs_have_the_label_and_the_length_that_they_say(store, ways):
    pieces = pair_pieces(store, 100)
    dataset = PairDataset(store, pieces, ways=ways, seed=3)
    counts, cuts = np.zeros(ways, int), set()
    for epoch in range(20):
        for piece, (document, start, stop) in enumerate(pieces.tolist()):
            feature = dataset[piece, epoch]
            assert len(feature["input_ids"]) == dataset.lengths[piece] <= 100
            first, second = segments(store, feature["input_ids"])
            label = feature["sentence_order_label"]
            counts[label] += 1
            cuts.add((piece, first, second))
            if label == 0:
                assert first == (document, start, second[1]) and second == (document, first[2], stop)
            elif label == 1:
                assert second == (document, start, first[1]) and first == (document, second[2], stop)
            else:
                assert first[:2] == (document, start) and second[0] != document
    shares = counts / counts.sum()
    assert abs(shares - 1 / ways).max() < 0.05, shares
    assert len(cuts) > 5 * len(pieces)


def test_a_pair_depends_on_the_seed_and_the_key_alone(store):
    pieces = pair_pieces(store, 100)
    one = PairDataset(store, pieces, ways=3, seed=5)
    items = [(piece, epoch) for epoch in (-1, 0, 1) for piece in range(len(pieces))]
    features = {item: one[item] for item in items}
    assert len({feature["key"] for feature in features.values()}) == len(items)
    twin = pickle.loads(pickle.dumps(one))
    for item in reversed(items):
        np.testing.assert_equal(twin[item], features[item])
    other = PairDataset(store, pieces, ways=3, seed=6)
    same = sum(np.array_equal(other[item]["input_ids"], features[item]["input_ids"]) for item in items)
    assert same < len(items) / 2


def test_where_no_segment_of_another_document_fits_the_pair_is_of_one():
    store = Store([[7, 7], [5, 5, 5]])
    dataset = PairDataset(store, pair_pieces(store, 13 + 5), ways=3)
    labels = [dataset[piece, epoch]["sentence_order_label"] for piece in range(2) for epoch in range(40)]
    assert set(labels) == {0, 1}


def test_what_cannot_give_pairs_raises(store):
    pieces = pair_pieces(store, 100)
    with pytest.raises(ValueError, match="2 or 3 ways"):
        PairDataset(store, pieces, ways=4)
    with pytest.raises(ValueError, match="one document"):
        PairDataset(Store([[3, 3]]), pieces, ways=3)
    with pytest.raises(ValueError, match="at least 5"):
        pair_pieces(store, 4)
    with pytest.raises(ValueError, match="two sentences"):
        pair_pieces(Store([[9], [90, 2]]), 20)
    with pytest.raises(ValueError, match="not a piece of pair_pieces"):
        PairDataset(store, np.array([[0, 0, 1]]))[0, 0]
    assert len(PairDataset(store, pieces)[0, 0]["input_ids"]) == PairDataset(store, pieces).lengths[0]


def test_from_documents_to_gradients(tmp_path, one_thread):
    """Every pair of a store, once an epoch, through the loader into a model; batches hold what the sampler counted."""
    words = [f"Sentence {number} of document {document} ends here." for document in range(9) for number in range(5)]
    texts = [" ".join(words[5 * document :][:5]) for document in range(9)]
    save_tokenizer(train_tokenizer(texts, vocab_size=300), tmp_path / "tokenizer")
    store = build_store(texts, tmp_path / "tokenizer", tmp_path / "store")
    pieces = pair_pieces(store, 64)
    dataset = PairDataset(store, pieces, ways=3)
    sampler = PackedSampler(dataset.lengths, 256, epochs=1)
    config = hf.tiny_config(vocab_size=store.vocab_size, sentence_order_labels=3)
    model = mf.accelerate(hf.build(hf.PRETRAINING, config), strict=True, loss_only=True).train()
    counts = []
    for batch in PackedLoader(dataset, sampler, MaskedLMCollator.from_store(store)):
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        assert len(batch["sentence_order_label"]) == len(output.sop_logits) == len(batch["cu_seq_lens_q"]) - 1
        assert (batch["input_ids"][0, batch["cu_seq_lens_q"][:-1].long()] == store.cls_id).all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        counts.append((len(output.sop_logits), batch["input_ids"].numel()))
    texts, tokens = torch.tensor(counts).T
    assert texts.sum() == len(pieces) and tokens.sum() == dataset.lengths.sum() and tokens.max() <= 256
