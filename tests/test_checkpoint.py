"""Checkpoints: round trips with transformers; malformed ones refused before memory is spent on them."""

import json
import os
import random
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file

from modernbert_fast import checkpoint
from modernbert_fast.config import EncoderConfig

CONFIG = EncoderConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    pad_token_id=0,
    num_labels=3,
)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TABLE = "embeddings.tok_embeddings.weight"


def encoder_shapes(config, prefix=""):
    C, F = config.hidden_size, config.intermediate_size
    shapes = {TABLE: (config.vocab_size, C), "embeddings.norm.weight": (C,), "final_norm.weight": (C,)}
    for i in range(config.num_hidden_layers):
        if i:
            shapes[f"layers.{i}.attn_norm.weight"] = (C,)
        shapes[f"layers.{i}.attn.Wqkv.weight"] = (3 * C, C)
        shapes[f"layers.{i}.attn.Wo.weight"] = (C, C)
        shapes[f"layers.{i}.mlp_norm.weight"] = (C,)
        shapes[f"layers.{i}.mlp.Wi.weight"] = (2 * F, C)
        shapes[f"layers.{i}.mlp.Wo.weight"] = (C, F)
    return {prefix + name: shape for name, shape in shapes.items()}


def mlm_shapes(config):
    V, C = config.vocab_size, config.hidden_size
    head = {"head.dense.weight": (C, C), "head.norm.weight": (C,)}
    decoder = {"decoder.weight": (V, C), "decoder.bias": (V,)}
    return {**encoder_shapes(config, "model."), **head, **decoder}


SHAPES = encoder_shapes(CONFIG)


def random_state(shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0, msg=name)


def write_raw(path, header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)


def edit(folder, change):
    """Rewrite model.safetensors after `change` was applied to its dict of tensors."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.fixture
def saved(tmp_path):
    """A folder with a bare encoder in one file."""
    checkpoint.save(random_state(SHAPES), CONFIG, tmp_path)
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    """A folder with a bare encoder in several files."""
    checkpoint.save(random_state(SHAPES), CONFIG, tmp_path, max_shard_size=4096)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return tmp_path


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def hf_model(transformers, head, **overrides):
    torch.manual_seed(0)
    config = transformers.ModernBertConfig.from_dict({**CONFIG.to_dict(), **overrides})
    return getattr(transformers, head)(config).eval()


HEADS = {
    "ModernBertModel": (),
    "ModernBertForMaskedLM": ("decoder.weight",),
    "ModernBertForSequenceClassification": (),
    "ModernBertForTokenClassification": (),
    "ModernBertForQuestionAnswering": (),
    "ModernBertForMultipleChoice": (),
}


@pytest.mark.parametrize("size", ["1GB", "4KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("head", HEADS)
def test_read_what_transformers_saves(transformers, tmp_path, head, size):
    model = hf_model(transformers, head)
    model.save_pretrained(tmp_path, max_shard_size=size)
    state = model.state_dict()
    assert checkpoint.load_config(tmp_path) == EncoderConfig.from_hf(model.config)
    found = checkpoint.read(tmp_path, {n: tuple(t.shape) for n, t in state.items()}, optional=HEADS[head])
    assert_same(found, {n: t for n, t in state.items() if n not in HEADS[head]})
    encoder = checkpoint.read(tmp_path, SHAPES)
    assert_same(encoder, dict(getattr(model, "model", model).state_dict()))


@pytest.mark.parametrize("max_shard_size", [10**9, 4096], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS)
def test_transformers_reads_what_we_save(transformers, tmp_path, head, dtype, max_shard_size):
    model = hf_model(transformers, head).to(dtype)
    ours = EncoderConfig.from_hf(model.config)
    checkpoint.save(model.state_dict(), ours, tmp_path, max_shard_size=max_shard_size)
    again, report = type(model).from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    assert not any(report.values()), report
    assert_same(dict(again.state_dict()), dict(model.state_dict()))
    assert EncoderConfig.from_hf(again.config) == ours


def test_old_style_config_gives_the_same_model(transformers, tmp_path):
    model = hf_model(transformers, "ModernBertModel")
    model.save_pretrained(tmp_path)
    new = checkpoint.load_config(tmp_path)
    old = new.to_dict()
    del old["layer_types"], old["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps({**old, "transformers_version": "4.48.0"}))
    assert checkpoint.load_config(tmp_path) == new
    again = transformers.AutoModel.from_pretrained(tmp_path)
    assert_same(dict(again.state_dict()), checkpoint.read(tmp_path, SHAPES))


def test_tied_decoder_is_left_out(transformers, tmp_path):
    model = hf_model(transformers, "ModernBertForMaskedLM")
    checkpoint.save(model.state_dict(), EncoderConfig.from_hf(model.config), tmp_path)
    assert load_file(tmp_path / WEIGHTS).keys() == model.state_dict().keys() - {"decoder.weight"}
    with pytest.raises(ValueError, match=r"lacks 'decoder\.weight'"):
        checkpoint.read(tmp_path, mlm_shapes(CONFIG))


def test_untied_decoder_is_kept(transformers, tmp_path):
    model = hf_model(transformers, "ModernBertForMaskedLM", tie_word_embeddings=False)
    checkpoint.save(model.state_dict(), EncoderConfig.from_hf(model.config), tmp_path)
    assert_same(checkpoint.read(tmp_path, mlm_shapes(CONFIG)), dict(model.state_dict()))
    again = type(model).from_pretrained(tmp_path)
    assert_same(dict(again.state_dict()), dict(model.state_dict()))


def test_headed_model_from_a_bare_checkpoint(saved):
    shapes = mlm_shapes(CONFIG)
    head = [name for name in shapes if not name.startswith("model.")]
    found = checkpoint.read(saved, shapes, optional=head)
    assert_same(found, {f"model.{name}": tensor for name, tensor in random_state(SHAPES).items()})


def test_classifier_from_a_masked_lm_checkpoint(tmp_path):
    checkpoint.save(random_state(mlm_shapes(CONFIG)), CONFIG, tmp_path)
    shapes = {**mlm_shapes(CONFIG), "classifier.weight": (3, 16), "classifier.bias": (3,)}
    del shapes["decoder.weight"], shapes["decoder.bias"]
    found = checkpoint.read(tmp_path, shapes, optional=["classifier.weight", "classifier.bias"])
    assert shapes.keys() - found.keys() == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_kept(tmp_path, dtype):
    state = random_state(SHAPES, dtype)
    checkpoint.save(state, CONFIG, tmp_path)
    assert_same(checkpoint.read(tmp_path, SHAPES), state)


def test_tensors_do_not_map_the_file(saved):
    found = checkpoint.read(saved, SHAPES)
    size = (saved / WEIGHTS).stat().st_size
    with (saved / WEIGHTS).open("r+b") as file:
        file.write(bytes(size))
    assert_same(found, random_state(SHAPES))


def test_views_and_shared_storage_are_saved_by_value(tmp_path):
    state = random_state(SHAPES)
    square = "layers.0.attn.Wo.weight"
    state[square] = state[square].T
    state["layers.1.attn.Wo.weight"] = state["layers.2.attn.Wo.weight"]
    checkpoint.save(state, CONFIG, tmp_path)
    assert_same(checkpoint.read(tmp_path, SHAPES), state)


def test_saving_again_replaces_every_earlier_weight(sharded):
    (sharded / "tokenizer.json").write_text("{}")
    state = random_state(SHAPES, torch.bfloat16)
    checkpoint.save(state, CONFIG, sharded)
    assert sorted(p.name for p in sharded.iterdir()) == ["config.json", WEIGHTS, "tokenizer.json"]
    assert_same(checkpoint.read(sharded, SHAPES), state)
    checkpoint.save(state, CONFIG, sharded, max_shard_size=4096)
    assert not (sharded / WEIGHTS).exists()
    assert_same(checkpoint.read(sharded, SHAPES), state)


def test_a_failed_save_leaves_the_old_checkpoint(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full_disk(*_args, **_kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(random_state(SHAPES, torch.float16), CONFIG, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1], ids=["empty", "length", "header", "in-header", "data"])
def test_truncated_file(saved, keep):
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[:keep])
    with pytest.raises(ValueError, match=WEIGHTS):
        checkpoint.read(saved, SHAPES)


def test_trailing_bytes(saved):
    with (saved / WEIGHTS).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=WEIGHTS):
        checkpoint.read(saved, SHAPES)


def test_missing_tensor(saved):
    edit(saved, lambda tensors: tensors.pop("final_norm.weight"))
    with pytest.raises(ValueError, match="lacks 'final_norm.weight'"):
        checkpoint.read(saved, SHAPES)


@pytest.mark.parametrize("name", ["layers.3.mlp.Wo.weight", "final_norm.bias", "pooler.weight"])
def test_extra_tensor(saved, name):
    edit(saved, lambda tensors: tensors.update({name: torch.zeros(2)}))
    with pytest.raises(ValueError, match=name):
        checkpoint.read(saved, SHAPES)


def test_extra_tensor_in_a_head_the_model_has(tmp_path):
    shapes = mlm_shapes(CONFIG)
    checkpoint.save(random_state({**shapes, "decoder.scale": (1,)}), CONFIG, tmp_path)
    with pytest.raises(ValueError, match=r"decoder\.scale"):
        checkpoint.read(tmp_path, shapes)


def test_the_same_tensor_under_both_prefixes(saved):
    edit(saved, lambda tensors: tensors.update({f"model.{TABLE}": torch.zeros(64, 16)}))
    with pytest.raises(ValueError, match=f"twice.*{TABLE}"):
        checkpoint.read(saved, SHAPES)


@pytest.mark.parametrize("shape", [(64, 15), (16, 64), (64 * 16,), (64, 16, 1)])
def test_wrong_shape(saved, shape):
    edit(saved, lambda tensors: tensors.update({TABLE: torch.zeros(shape)}))
    with pytest.raises(ValueError, match=TABLE):
        checkpoint.read(saved, SHAPES)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn])
def test_wrong_dtype(saved, dtype):
    edit(saved, lambda tensors: tensors.update({TABLE: tensors[TABLE].to(dtype)}))
    with pytest.raises(ValueError, match=f"{TABLE}.*dtype"):
        checkpoint.read(saved, SHAPES)


@pytest.mark.parametrize("offsets", [[0, 4], [0, 2**62], [-4, 60], [64, 0]])
def test_header_that_lies_about_its_data(tmp_path, offsets):
    write_raw(tmp_path / WEIGHTS, {"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": offsets}}, bytes(64))
    with pytest.raises(ValueError, match=WEIGHTS):
        checkpoint.read(tmp_path, {"a": (4, 4)})


@pytest.mark.parametrize("shape", [[2**40, 16], [2**32, 2**32], [10**30], [-1, 4], [4.0, 4], [True, 4], "ab", None])
def test_header_with_an_absurd_shape(tmp_path, shape):
    write_raw(tmp_path / WEIGHTS, {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 64]}}, bytes(64))
    wanted = tuple(shape) if isinstance(shape, list) else (4, 4)
    for asked in ((4, 4), wanted):
        with pytest.raises(ValueError, match=WEIGHTS):
            checkpoint.read(tmp_path, {"a": asked})


@pytest.mark.parametrize(
    "entry", [None, 1, [], {}, {"dtype": "F32"}, {"dtype": 7, "shape": [4, 4]}, {"dtype": "F32", "shape": {}}]
)
def test_malformed_header_entry(tmp_path, entry):
    write_raw(tmp_path / WEIGHTS, {"a": entry}, bytes(64))
    with pytest.raises(ValueError, match="'a'"):
        checkpoint.read(tmp_path, {"a": (4, 4)})


def test_key_twice_in_the_header(tmp_path):
    entry = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    write_raw(tmp_path / WEIGHTS, b"{" + entry + b"," + entry + b"}", bytes(4))
    with pytest.raises(ValueError, match="'a' occurs twice"):
        checkpoint.read(tmp_path, {"a": (1,)})


@pytest.mark.parametrize("length", [2**24 + 1, 2**40, 2**63, 2**64 - 1])
def test_huge_header_length(tmp_path, length):
    write_raw(tmp_path / WEIGHTS, b"{}", length=length)
    os.truncate(tmp_path / WEIGHTS, 2**26)  # sparse: large enough for the first claim
    tracemalloc.start()
    with pytest.raises(ValueError, match="header"):
        checkpoint.read(tmp_path, SHAPES)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_too_many_tensors(tmp_path):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    write_raw(tmp_path / WEIGHTS, {f"t{i}": entry for i in range(checkpoint.MAX_TENSORS + 1)})
    with pytest.raises(ValueError, match="10001 tensors"):
        checkpoint.read(tmp_path, SHAPES)


@pytest.mark.parametrize("pickle_name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_a_pickled_checkpoint_is_refused(tmp_path, pickle_name):
    (tmp_path / pickle_name).write_bytes(b"\x80\x02.")
    with pytest.raises(ValueError, match="convert.*safetensors"):
        checkpoint.read(tmp_path, SHAPES)


def test_a_pickle_named_safetensors(tmp_path):
    torch.save(random_state(SHAPES), tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=WEIGHTS):
        checkpoint.read(tmp_path, SHAPES)


def test_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=WEIGHTS):
        checkpoint.read(tmp_path, SHAPES)
    with pytest.raises(FileNotFoundError):
        checkpoint.load_config(tmp_path)


def test_weights_that_are_a_folder(tmp_path):
    (tmp_path / WEIGHTS).mkdir()
    with pytest.raises(ValueError, match="regular file"):
        checkpoint.read(tmp_path, SHAPES)


@pytest.mark.parametrize("key, value", [("hidden_size", 2**40), ("vocab_size", 2**40), ("norm_eps", float("nan"))])
def test_bad_config_file(saved, key, value):
    values = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**values, key: value}))
    with pytest.raises(ValueError, match=f"'{key}'"):
        checkpoint.load_config(saved)


def test_the_largest_legal_config_is_refused_before_memory_is_spent(saved):
    huge = EncoderConfig(
        vocab_size=2**24,
        hidden_size=2**16,
        intermediate_size=2**18,
        num_hidden_layers=100,
        num_attention_heads=512,
    )
    tracemalloc.start()
    with pytest.raises(ValueError, match="lacks"):
        checkpoint.read(saved, encoder_shapes(huge))
    with pytest.raises(ValueError, match=TABLE):
        checkpoint.read(saved, {**SHAPES, TABLE: (2**24, 2**16)})
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def set_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "file",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/../../outside.safetensors",
        "sub/inside.safetensors",
        "..",
        "",
        "a\0.safetensors",
        "a" * 5000 + ".safetensors",
        "weights.bin",
        None,
        7,
    ],
    ids=repr,
)
def test_index_that_leaves_the_folder(sharded, file):
    set_index(sharded, lambda weight_map: weight_map.update({TABLE: file}))
    with pytest.raises(ValueError, match=TABLE):
        checkpoint.read(sharded, SHAPES)


def test_shard_that_links_out_of_the_folder(sharded):
    inner = sharded / "checkpoint"
    inner.mkdir()
    for path in [*sharded.glob("model*")]:
        path.rename(inner / path.name)
    shard = inner / json.loads((inner / INDEX).read_text())["weight_map"][TABLE]
    shard.rename(sharded / "outside.safetensors")
    shard.symlink_to(sharded / "outside.safetensors")
    with pytest.raises(ValueError, match="link out of the folder"):
        checkpoint.read(inner, SHAPES)


def test_shard_that_links_to_itself(sharded):
    shard = next(sharded.glob("model-*"))
    shard.unlink()
    shard.symlink_to(shard.name)
    with pytest.raises(ValueError, match=shard.name):
        checkpoint.read(sharded, SHAPES)


def test_links_of_the_hub_cache_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    state = random_state(SHAPES)
    checkpoint.save(state, CONFIG, snapshot, max_shard_size=4096)
    blobs.mkdir()
    for i, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(i))
        path.symlink_to(f"../../blobs/{i}")
    assert_same(checkpoint.read(snapshot, SHAPES), state)


def test_index_naming_a_missing_shard(sharded):
    set_index(sharded, lambda weight_map: weight_map.update({TABLE: "model-99999-of-99999.safetensors"}))
    with pytest.raises(ValueError, match="model-99999-of-99999"):
        checkpoint.read(sharded, SHAPES)


def test_index_and_shards_that_disagree(sharded):
    name = "layers.1.mlp_norm.weight"  # in a shard with others
    set_index(sharded, lambda weight_map: weight_map.pop(name))
    with pytest.raises(ValueError, match=f"{name}.*index says"):
        checkpoint.read(sharded, SHAPES)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": None}])
def test_index_without_a_map(sharded, index):
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="weight_map"):
        checkpoint.read(sharded, SHAPES)


def test_random_byte_flips_load_or_raise_value_error(saved):
    original = (saved / WEIGHTS).read_bytes()
    rng = random.Random(0)
    loaded = 0
    for _ in range(300):
        content = bytearray(original)
        for _ in range(rng.choice((1, 1, 2, 8))):
            content[rng.randrange(2048)] = rng.randrange(256)
        (saved / WEIGHTS).write_bytes(content)
        try:
            found = checkpoint.read(saved, SHAPES)
        except ValueError:
            continue
        loaded += 1
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == SHAPES
    assert loaded < 300
