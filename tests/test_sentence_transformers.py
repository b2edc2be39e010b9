"""sentence-transformers' four kinds of model, accelerated in place: what they encode, save and learn is stock's."""

import json
import pickle

import hf_models as hf
import pytest
import torch
from torch import nn

import modernbert_fast as mf
from modernbert_fast import tail
from modernbert_fast.retrieval.texts import TextEncoder
from modernbert_fast.testing import assert_as_good_as

st = pytest.importorskip("sentence_transformers", minversion="6")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("one_thread")

from sentence_transformers.base.modules import Dense, Normalize, Transformer  # noqa: E402
from sentence_transformers.multi_vector_encoder.modules import (  # noqa: E402
    HierarchicalTokenPooling,
    MultiVectorMask,
)
from sentence_transformers.sentence_transformer.modules import Pooling  # noqa: E402
from sentence_transformers.sparse_encoder.modules import SpladePooling  # noqa: E402

TEXTS = ["a short one", "a text of quite a few more words than the others , which have few", "two words", "few ,"]
TOKENS = {"module_input_name": "token_embeddings"}
EXPANSIONS = [
    {"strategy": strategy, "attend": attend, "length": 9} for strategy in ("fixed", "min") for attend in (True, False)
]
UNSEEN = {"strategy": "fixed", "attend": False, "length": 9}
KINDS = ("SentenceTransformer", "CrossEncoder", "SparseEncoder", "MultiVectorEncoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of words; `saved` puts a tiny model beside it."""
    folder = tmp_path_factory.mktemp("st")
    words = sorted({word for text in TEXTS for word in text.split()})
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    special["mask_token"] = "[MASK]"
    vocab = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    names["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, **special}))
    return folder


def saved(folder, architecture, **changes):
    hf.build(architecture, hf.tiny_config(**changes)).save_pretrained(folder)
    return str(folder)


def build(kind, folder, **options):
    """A tiny model of a kind; `options` are those of its last module that has any, or of the config."""
    torch.manual_seed(0)
    if kind == "CrossEncoder":
        return st.CrossEncoder(saved(folder, "ModernBertForSequenceClassification", num_labels=1), device="cpu")
    if kind == "SparseEncoder":
        word = Transformer(saved(folder, hf.MLM), transformer_task="fill-mask")
        return st.SparseEncoder(modules=[word, SpladePooling(**options)], device="cpu")
    if kind == "SentenceTransformer":
        word = Transformer(saved(folder, "ModernBertModel"))
        return st.SentenceTransformer(modules=[word, Pooling(32, **options), Normalize()], device="cpu")
    expansion = options.pop("query_expansion", None)
    word = Transformer(saved(folder, "ModernBertModel", **options), query_expansion=expansion)
    wide = Dense(32, 32, use_residual=True, **TOKENS)
    narrow = Dense(32, 16, bias=False, activation_function=nn.Identity(), **TOKENS)
    mask = MultiVectorMask(["few", ","])
    return st.MultiVectorEncoder(modules=[word, wide, narrow, mask, Normalize(**TOKENS)], device="cpu")


def run(model, texts=TEXTS, **options):
    """Vectors of texts, (n, D) each; scores of pairs."""
    if isinstance(model, st.CrossEncoder):
        return model.predict([(TEXTS[0], text) for text in texts], convert_to_tensor=True)[:, None]
    if isinstance(model, st.SparseEncoder):
        options["convert_to_sparse_tensor"] = False
    return [torch.as_tensor(x) for x in model.encode(texts, batch_size=3, **options)]


def assert_close(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        assert hf.relative(one, other) <= 1e-5


def assert_same(model, call):
    """What a call gives accelerated is what it gives stock, before and, to the bit, after restore()."""
    expected = call(model)
    assert mf.accelerate(model) is model and mf.is_accelerated(model)
    assert_close(call(model), expected)
    restored = call(mf.restore(model))
    assert all(map(torch.equal, restored, expected))


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_stocks_and_no_text_changes_another(folder, kind):
    model = build(kind, folder)
    assert_same(model, run)
    assert type(model) is getattr(st, kind)
    texts = [*TEXTS, 3 * TEXTS[1]]
    together = run(mf.accelerate(model), texts)
    assert type(model).__name__ == kind and isinstance(model, getattr(st, kind))
    for text, vectors in zip(texts, together, strict=True):
        assert torch.equal(run(model, [text])[0], vectors)


@pytest.mark.parametrize("mode", ["cls", "mean", ("mean", "cls"), "max", "lasttoken", "weightedmean"])
def test_pooling(folder, mode):
    assert_same(build("SentenceTransformer", folder, pooling_mode=mode), run)


def test_pooling_without_the_prompt(folder):
    model = build("SentenceTransformer", folder, include_prompt=False)
    assert_same(model, lambda model: run(model, prompt="a few words"))


def test_tokens_of_a_sentence_transformer(folder):
    """Whoever asks for the tokens, or for all that the modules gave, gets them laid out as before."""
    model = build("SentenceTransformer", folder)
    assert_same(model, lambda model: run(model, output_value="token_embeddings"))
    expected = model.encode(TEXTS, output_value=None)
    for one, other in zip(mf.accelerate(model).encode(TEXTS, output_value=None), expected, strict=True):
        assert one.keys() == other.keys()
        kept = other["attention_mask"].bool()
        assert_close([one["token_embeddings"][kept]], [other["token_embeddings"][kept]])


@pytest.mark.parametrize("options", [{"pooling_strategy": "sum"}, {"activation_function": "log1p_relu"}])
def test_sparse(folder, options):
    assert_same(build("SparseEncoder", folder, **options), run)


@pytest.mark.parametrize("task", ["query", "document", None])
@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_many_vectors_with_query_expansion(folder, task, expansion):
    """Expansion tokens count whether or not others attend to them; the skip list has no say in queries."""
    model = build("MultiVectorEncoder", folder, query_expansion=expansion)
    assert_same(model, lambda model: run(model, task=task))
    together = run(mf.accelerate(model, strict=True), task=task)
    for text, vectors in zip(TEXTS, together, strict=True):
        assert torch.equal(run(model, [text], task=task)[0], vectors)
    everything = [one["token_embeddings"][one["attention_mask"]] for one in run_all(model, task)]
    assert_close(everything, together)


def run_all(model, task):
    """All that the modules give, as training has it: padded."""
    return model.encode(TEXTS, output_value=None, task=task)


@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_query_expansion_on_the_left_and_beyond_the_window(folder, expansion):
    """Where the tokenizer pads on the left, tokens have expansion before them, or holes; a window of two leaves some of
    it nothing to see."""
    model = build("MultiVectorEncoder", folder, query_expansion=expansion, local_attention=4)
    assert_same(model, lambda model: run(model, task="query"))
    model.tokenizer.padding_side = "left"
    assert_same(model, lambda model: run(model, task="query"))
    expected = run(mf.accelerate(model, strict=True), task="query")
    model[0].register_forward_hook(lambda *_: None)  # nothing is fused then, and nothing is lost
    assert_close(run(model, task="query"), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"convert_to_numpy": True},
        {"normalize_embeddings": True, "prompt": "a few "},
        {"token_pooling": HierarchicalTokenPooling(pool_factor=2)},
        {"device": "cpu", "show_progress_bar": False},
    ],
)
def test_options_of_many_vectors(folder, options):
    model = build("MultiVectorEncoder", folder)
    assert_same(model, lambda model: run(model, **options))
    one = model.encode(TEXTS[1], **options)
    assert_close([torch.as_tensor(mf.accelerate(model).encode(TEXTS[1], **options))], [torch.as_tensor(one)])
    assert model.encode([]) == []


def test_many_vectors_keep_no_batch_alive_and_score_as_stock(folder):
    model = mf.accelerate(build("MultiVectorEncoder", folder))
    vectors = model.encode(TEXTS)
    assert all(x.untyped_storage().nbytes() == x.numel() * x.element_size() for x in vectors)
    scores = model.similarity(vectors, vectors)
    assert_close([scores], [mf.restore(model).similarity(*2 * [model.encode(TEXTS)])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [[0, 1, 4], [2, 4], [4], [], [0, 1, 2, 3, 4]])
def test_select(dtype, kept):
    """Rows by number, of unit length: as near to the truth as torch, and gradients only where they come from."""
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    kept = torch.tensor(kept, dtype=torch.int64)
    assert torch.equal(tail.select(x, kept, normalize=False), x[kept])
    truth = nn.functional.normalize(x.double()[kept], dim=1)
    assert_as_good_as(tail.select(x, kept, True), nn.functional.normalize(x[kept], dim=1), truth, "select")
    tail.select(x, kept, False).sum().backward()
    assert torch.equal(x.grad.any(dim=1).nonzero().squeeze(1), kept)


@pytest.mark.parametrize("kind", ["SentenceTransformer", "MultiVectorEncoder"])
def test_an_index_gets_the_same_vectors_in_any_batch(folder, tmp_path, kind):
    build(kind, folder).save_pretrained(str(tmp_path), create_model_card=False)
    encoder = TextEncoder(tmp_path, "cpu")
    assert mf.is_accelerated(encoder.model)
    vectors, bounds = encoder.documents(TEXTS, batch=4)
    alone, same_bounds = encoder.documents(TEXTS, batch=1)
    assert torch.equal(vectors, alone) and torch.equal(bounds, same_bounds) and bounds[-1] == len(vectors)


@pytest.mark.parametrize("kind", KINDS)
def test_saves_as_stock_saves(folder, tmp_path, kind):
    model = build(kind, folder)
    for name, saves in (("stock", model), ("fast", mf.accelerate(model))):
        saves.save_pretrained(str(tmp_path / name), create_model_card=False)
    stock, fast = tmp_path / "stock", tmp_path / "fast"
    names = sorted(path.relative_to(stock) for path in stock.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(fast) for path in fast.rglob("*") if path.is_file())
    assert all((stock / name).read_bytes() == (fast / name).read_bytes() for name in names)
    loaded = getattr(st, kind)(str(fast), device="cpu")
    assert_close(run(loaded), run(model))


def test_a_checkpoint_of_pylate(folder, tmp_path):
    """Which PyLate itself, on an older transformers, could not share an environment with."""
    build("MultiVectorEncoder", folder).save_pretrained(str(tmp_path), create_model_card=False)
    modules = json.loads((tmp_path / "modules.json").read_text())[:3]
    for module in modules[1:]:
        module["type"] = "pylate.models.Dense.Dense"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    settings = tmp_path / "config_sentence_transformers.json"
    own = {"model_type": "ColBERT", "query_prefix": "few ", "document_prefix": "a ", "query_length": 9}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | own | {"attend_to_expansion_tokens": True}))
    encoder = TextEncoder(tmp_path, "cpu")
    assert encoder.multi and encoder.model[0].query_expansion["length"] == 9
    vectors, bounds = encoder.queries(TEXTS)
    assert bounds.diff().tolist() == [9] * len(TEXTS) and encoder.documents(TEXTS)[1][-1] < 64
    assert_close(vectors.split(9), mf.restore(encoder.model).encode_query(TEXTS))


@pytest.mark.parametrize("kind", KINDS)
def test_survives_pickling(folder, kind):
    model = mf.accelerate(build(kind, folder))
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model) and mf.is_accelerated(again)
    assert all(map(torch.equal, run(again), run(model)))


@pytest.mark.slow
def test_encodes_in_several_processes(folder):
    model = mf.accelerate(build("MultiVectorEncoder", folder))
    expected = run(model)
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        assert_close(run(model, pool=pool, chunk_size=2), expected)
    finally:
        model.stop_multi_process_pool(pool)


def trainer_of(kind, model):
    """Their trainer and the loss that their documentation starts with."""
    if kind == "SentenceTransformer":
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

        return st.SentenceTransformerTrainer, CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
    if kind == "CrossEncoder":
        from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

        return st.CrossEncoderTrainer, BinaryCrossEntropyLoss(model)
    if kind == "SparseEncoder":
        from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss

        inner = SparseMultipleNegativesRankingLoss(model)
        return st.SparseEncoderTrainer, SpladeLoss(model, inner, document_regularizer_weight=1e-2)
    from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss

    return st.MultiVectorEncoderTrainer, MultiVectorMultipleNegativesRankingLoss(model)


@pytest.mark.parametrize("kind, built", [*((kind, {}) for kind in KINDS), (KINDS[-1], {"query_expansion": UNSEEN})])
def test_trains_the_same(folder, tmp_path, kind, built):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    columns = {"anchor": 3 * TEXTS, "positive": 3 * TEXTS[::-1]}
    if kind == "CrossEncoder":
        columns["label"] = 3 * [1.0, 0.0, 0.0, 1.0]
    curves = []
    for fast in (False, True):
        model = build(kind, folder, **built)
        if fast:
            mf.accelerate(model, strict=True)
        trainer, loss = trainer_of(kind, model)
        options = {"learning_rate": 1e-3, "max_steps": 5, "logging_steps": 1, "seed": 1, "use_cpu": True}
        quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "per_device_train_batch_size": 4}
        kinds = getattr(st, f"{kind}TrainingArguments")
        args = kinds(output_dir=str(tmp_path), **options, **quiet)
        trained = trainer(model=model, args=args, train_dataset=datasets.Dataset.from_dict(columns), loss=loss)
        trained.train()
        curves.append(torch.tensor([entry["loss"] for entry in trained.state.log_history if "loss" in entry]))
    assert curves[0].shape == (5,) and curves[0].diff().abs().min() > 0
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-4, atol=0)
