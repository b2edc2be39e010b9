"""ModernBert and ModernBertWithHead, which need no transformers, give what transformers gives for each text alone."""

import subprocess
import sys

import hf_models as hf
import pytest
import torch
import transformers

import modernbert_fast as mf

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [[5, 6, 7], [9], [11] * 4, list(range(20, 60))]


def expected_rows(stock, architecture):
    with torch.no_grad():
        return hf.alone(stock, architecture, [torch.tensor(text) for text in TEXTS])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("architecture", hf.ARCHITECTURES)
def test_packed_texts_equal_transformers(architecture, seed, tmp_path):
    stock = hf.build(architecture, hf.random_config(seed + 10), seed)
    stock.save_pretrained(tmp_path)
    kind = mf.ModernBert if architecture == "ModernBertModel" else mf.ModernBertWithHead
    ours = kind.from_pretrained(tmp_path)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    with torch.no_grad():
        actual = ours(mf.PackedBatch.from_lists(TEXTS))
    assert hf.relative(actual, expected_rows(stock, architecture)) <= 1e-5


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_follows_the_config(pooling, tmp_path):
    architecture = "ModernBertForSequenceClassification"
    stock = hf.build(architecture, hf.tiny_config(classifier_pooling=pooling))
    stock.save_pretrained(tmp_path)
    ours = mf.ModernBertWithHead.from_pretrained(tmp_path)
    with torch.no_grad():
        actual = ours(mf.PackedBatch.from_lists(TEXTS))
    assert hf.relative(actual, expected_rows(stock, architecture)) <= 1e-5


def test_gradients_equal_transformers():
    stock = hf.build("ModernBertModel", hf.tiny_config(norm_bias=True, attention_bias=True))
    ours = mf.ModernBert(mf.EncoderConfig.from_hf(stock.config)).eval()
    ours.load_state_dict(stock.state_dict())
    ours(mf.PackedBatch.from_lists(TEXTS)).square().mean().backward()
    hf.alone(stock, "ModernBertModel", [torch.tensor(text) for text in TEXTS]).square().mean().backward()
    grads = hf.gradients(ours)
    for name, gradient in hf.gradients(stock).items():
        assert hf.relative(grads[name], gradient, 1e-9) <= 1e-4, name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", hf.ARCHITECTURES)
def test_new_weights_are_drawn_as_transformers_draws_them(architecture, tied):
    config = hf.tiny_config(
        hidden_size=128, num_labels=32, tie_word_embeddings=tied, decoder_bias=True, attention_bias=True, mlp_bias=True
    )
    stock = getattr(transformers, architecture)(config)
    ours = mf.EncoderConfig.from_hf(config)
    ours = mf.ModernBert(ours) if architecture == "ModernBertModel" else mf.ModernBertWithHead(ours, architecture)
    tensors = ours.state_dict()
    for name, expected in stock.state_dict().items():
        actual = tensors[name]
        if expected.dim() == 1 or expected.shape[0] == 1:  # too few numbers to measure a deviation by
            assert expected.dim() == 2 or torch.equal(actual, expected), name
            continue
        assert abs(actual.std() / expected.std() - 1) < 0.05, name
        assert abs(actual.abs().max() / expected.abs().max() - 1) < 0.02, name  # both go up to the cutoff


def test_a_mask_of_ones_takes_no_gather():
    for full in (True, False):
        mask = torch.ones(3, 5, dtype=torch.long)
        mask[2, 4] = full
        padded = mf.PackedBatch.from_padded((3, 5), mask)
        assert (padded.indices is None) == full and padded.columns is None
        grid = torch.randn(3, 5, 2) * mask[..., None]
        assert torch.equal(padded.pad(padded.unpad(grid)), grid)


def test_padded_and_flattened_batches_hold_the_same_texts():
    torch.manual_seed(0)
    ours = mf.ModernBert(mf.EncoderConfig.from_hf(hf.tiny_config())).eval()
    batch = hf.batch("right")
    padded = mf.PackedBatch.from_padded(tuple(batch.ids.shape), batch.mask)
    with torch.no_grad():
        one = ours(padded, padded.unpad(batch.ids))
        other = ours(mf.PackedBatch.from_lists([text.tolist() for text in batch.texts]))
    assert torch.equal(one, other)
    assert torch.equal(padded.pad(one)[batch.mask], one)


def test_what_it_refuses():
    config = mf.EncoderConfig.from_hf(hf.tiny_config(attention_dropout=0.1))
    ours = mf.ModernBert(config)
    batch = mf.PackedBatch.from_lists(TEXTS)
    with pytest.raises(NotImplementedError, match="attention_dropout"):
        ours.train()(batch)
    ours.eval()
    with pytest.raises(ValueError, match="exactly one"):
        ours(batch, batch.tokens, torch.zeros(len(batch.tokens), config.hidden_size))
    for bad in (-1, hf.VOCAB):
        with pytest.raises(IndexError):
            ours(mf.PackedBatch.from_lists([[1, bad]]))
    with pytest.raises(ValueError, match="architectures"):
        mf.ModernBertWithHead(config, "BertModel")
    assert ours(batch).isfinite().all()


WITHOUT_TRANSFORMERS = """
import sys
sys.modules["transformers"] = None  # importing it raises ImportError
import torch, modernbert_fast as mf
torch.set_num_threads(1)
config = mf.EncoderConfig(vocab_size=50, hidden_size=16, intermediate_size=8, num_hidden_layers=2,
                          num_attention_heads=2, pad_token_id=0)
batch = mf.PackedBatch.from_lists([[1, 2, 3], [4]])
assert mf.ModernBert(config).eval()(batch).shape == (4, 16)
head = mf.ModernBertWithHead(config, "ModernBertForMaskedLM")
head(batch).square().mean().backward()
try:
    mf.accelerate(head)
except ImportError as error:
    assert "transformers" in str(error)
else:
    raise AssertionError("accelerate() needs transformers")
loaded = sorted(name for name in sys.modules if name.startswith("transformers"))
assert loaded == ["transformers"], loaded
print("fine")
"""


def test_none_of_it_needs_transformers():
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRANSFORMERS], env=hf.environment(), capture_output=True, text=True
    )
    assert run.stdout == "fine\n", run.stderr
