"""EncoderConfig: both key styles, refusals that name the key, rope frequencies equal to transformers'."""

import copy
import dataclasses
import pickle

import pytest
import torch

from modernbert_fast.config import FULL, SLIDING, EncoderConfig
from modernbert_fast.frequencies import inv_freq

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
OLD_STYLE = {
    **TINY,
    "model_type": "modernbert",
    "architectures": ["ModernBertForMaskedLM"],
    "global_attn_every_n_layers": 2,
    "global_rope_theta": 80000.0,
    "local_rope_theta": 20000.0,
    "layer_norm_eps": 1e-5,
    "position_embedding_type": "absolute",
    "gradient_checkpointing": False,
    "torch_dtype": "float32",
    "reference_compile": None,
    "deterministic_flash_attn": False,
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def thetas(config):
    return config.rope_parameters[FULL]["rope_theta"], config.rope_parameters[SLIDING]["rope_theta"]


@pytest.mark.parametrize("name, count", [("base", 149_014_272), ("large", 394_781_696)])
def test_presets_have_the_published_size(name, count):
    config = EncoderConfig.preset(name)
    assert config.num_parameters() == count
    assert config.head_dim == 64
    assert (config.window(FULL), config.window(SLIDING)) == (-1, 64)


@pytest.mark.parametrize("biased", [False, True])
def test_num_parameters_counts_every_bias(transformers, biased):
    flags = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias"), biased)
    model = transformers.ModernBertModel(transformers.ModernBertConfig(**TINY, **flags))
    assert EncoderConfig.from_hf(model.config).num_parameters() == model.num_parameters()


def test_preset_is_the_class_default_of_transformers(transformers):
    assert EncoderConfig.from_hf(transformers.ModernBertConfig()) == EncoderConfig.preset("base") == EncoderConfig()


def test_old_keys():
    config = EncoderConfig.from_dict(OLD_STYLE)
    assert config.layer_types == (FULL, SLIDING, FULL, SLIDING, FULL)
    assert thetas(config) == (80000.0, 20000.0)
    assert config.architectures == ("ModernBertForMaskedLM",)


@pytest.mark.parametrize(
    "keys, expected",
    [
        ({}, (160000.0, 10000.0)),
        ({"global_rope_theta": 5e4, "local_rope_theta": None}, (5e4, 5e4)),
        ({"rope_theta": 7e4}, (7e4, 10000.0)),
        ({"rope_theta": 7e4, "global_rope_theta": 5e4}, (5e4, 10000.0)),
        ({"global_rope_theta": 5e4, "rope_parameters": {FULL: {"rope_theta": 9e4}}}, (9e4, 10000.0)),
        ({"rope_parameters": {SLIDING: None, FULL: {"rope_type": "default"}}}, (160000.0, 10000.0)),
    ],
)
def test_where_theta_comes_from(keys, expected):
    assert thetas(EncoderConfig.from_dict({**TINY, **keys})) == expected


def test_rope_scaling_reaches_both_layer_types():
    config = EncoderConfig.from_dict({**TINY, "rope_scaling": {"type": "linear", "factor": 2}})
    assert [config.rope_parameters[kind]["rope_type"] for kind in (FULL, SLIDING)] == ["linear", "linear"]


def test_rope_scaling_wins_over_rope_parameters(transformers):
    linear = {"rope_type": "linear", "factor": 2.0}
    keys = {"rope_parameters": {FULL: linear, SLIDING: linear}, "rope_scaling": {"factor": 4.0}}
    ours = EncoderConfig.from_dict({**TINY, **copy.deepcopy(keys)})
    assert ours.rope_parameters[FULL]["factor"] == 4.0
    theirs = transformers.ModernBertConfig(**TINY, **keys)
    assert EncoderConfig.from_hf(theirs).rope_parameters[FULL] == ours.rope_parameters[FULL]


def test_layer_types_win_over_the_old_pattern():
    kinds = [SLIDING, FULL, FULL, SLIDING, FULL]
    config = EncoderConfig.from_dict({**TINY, "layer_types": kinds, "global_attn_every_n_layers": 3})
    assert config.layer_types == tuple(kinds)
    assert "global_attn_every_n_layers" not in config.to_dict()


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5])
def test_regular_patterns_survive_the_old_key_alone(every):
    config = EncoderConfig.from_dict({**TINY, "global_attn_every_n_layers": every})
    written = config.to_dict()
    del written["layer_types"], written["rope_parameters"]
    assert EncoderConfig.from_dict(written) == config


@pytest.mark.parametrize("labels", [{}, {"num_labels": 7}, {"id2label": {"0": "a", "1": "b", "2": "c"}}])
def test_number_of_labels(labels):
    expected = labels.get("num_labels", len(labels.get("id2label", "ab")))
    assert EncoderConfig.from_dict({**TINY, **labels}).num_labels == expected


@pytest.mark.parametrize("rope", [{}, {FULL: YARN}, {FULL: LLAMA3, SLIDING: {"rope_type": "linear", "factor": 2.0}}])
def test_round_trip(rope):
    config = EncoderConfig.from_dict({**OLD_STYLE, "rope_parameters": rope, "eos_token_id": [3, 4]})
    assert EncoderConfig.from_dict(config.to_dict()) == config
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert hash(dataclasses.replace(config)) == hash(config)


def test_transformers_reads_what_we_write(transformers):
    ours = EncoderConfig.from_dict({**OLD_STYLE, "local_attention": 64, "norm_eps": 1e-6, "num_labels": 4})
    theirs = transformers.ModernBertConfig.from_dict(ours.to_dict())
    assert EncoderConfig.from_hf(theirs) == ours


@pytest.mark.parametrize("rope", [None, {FULL: YARN}])
def test_we_read_what_transformers_writes(transformers, tmp_path, rope):
    theirs = transformers.ModernBertConfig(**TINY, rope_parameters=rope, local_attention=20, num_labels=3)
    theirs.save_pretrained(tmp_path)
    ours = EncoderConfig.from_file(tmp_path / "config.json")
    assert ours == EncoderConfig.from_hf(theirs)
    assert (ours.window(SLIDING), ours.num_labels) == (10, 3)


def test_nothing_that_names_code_is_read():
    hostile = {
        "_attn_implementation": "someone/kernel",
        "_attn_implementation_internal": "someone/kernel",
        "attn_implementation": "someone/kernel",
        "auto_map": {"AutoModel": "someone/code--model.Model"},
    }
    assert EncoderConfig.from_dict({**TINY, **hostile}) == EncoderConfig.from_dict(TINY)


@pytest.mark.parametrize(
    "key, value",
    [
        ("vocab_size", 0),
        ("vocab_size", 2**40),
        ("vocab_size", "96"),
        ("vocab_size", None),
        ("hidden_size", -32),
        ("hidden_size", 32.0),
        ("hidden_size", 33),
        ("hidden_size", 2**40),
        ("hidden_size", 2),
        ("intermediate_size", True),
        ("intermediate_size", 10**400),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", []),
        ("num_attention_heads", 0),
        ("max_position_embeddings", 2**40),
        ("local_attention", 0),
        ("num_labels", 0),
        ("norm_eps", float("nan")),
        ("norm_eps", -1e-5),
        ("norm_eps", "1e-5"),
        ("norm_bias", 1),
        ("tie_word_embeddings", None),
        ("attention_dropout", 1.5),
        ("mlp_dropout", True),
        ("initializer_range", float("inf")),
        ("initializer_range", 10**400),
        ("hidden_activation", 3),
        ("classifier_activation", ""),
        ("classifier_pooling", "max"),
        ("problem_type", "ranking"),
        ("pad_token_id", 96),
        ("pad_token_id", -1),
        ("cls_token_id", 1.0),
        ("eos_token_id", [1, "2"]),
        ("sparse_pred_ignore_index", None),
        ("architectures", "ModernBertModel"),
        ("model_type", "modernbert-decoder"),
        ("model_type", []),
        ("layer_types", []),
        ("layer_types", [FULL] * 4),
        ("layer_types", [FULL] * 4 + ["chunked_attention"]),
        ("layer_types", FULL),
        ("global_attn_every_n_layers", 0),
        ("global_attn_every_n_layers", True),
        ("global_rope_theta", 0.0),
        ("global_rope_theta", float("nan")),
        ("local_rope_theta", -1),
        ("rope_theta", "10000"),
        ("rope_scaling", 2.0),
        ("rope_parameters", []),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
        ("id2label", ["a", "b"]),
    ],
)
def test_refusals_name_the_key(key, value):
    with pytest.raises(ValueError, match=f"'{key}'"):
        EncoderConfig.from_dict({**TINY, key: value})


@pytest.mark.parametrize(
    "key, entry",
    [
        ("rope_type", {"rope_type": "axial"}),
        ("rope_type", {"rope_type": ["default"]}),
        ("rope_theta", {"rope_theta": float("inf")}),
        ("factor", {"rope_type": "linear"}),
        ("factor", {"rope_type": "linear", "factor": 0}),
        ("low_freq_factor", {"rope_type": "llama3", "factor": 8.0}),
        ("high_freq_factor", {**LLAMA3, "high_freq_factor": 1.0}),
        ("original_max_position_embeddings", {**YARN, "original_max_position_embeddings": 0}),
        ("partial_rotary_factor", {**YARN, "partial_rotary_factor": 0.5}),
        ("long_factor", {"rope_type": "longrope", "short_factor": [1.0], "long_factor": 2.0}),
    ],
)
def test_rope_refusals_name_the_key(key, entry):
    with pytest.raises(ValueError, match=rf"'rope_parameters\.{SLIDING}\.{key}'"):
        EncoderConfig.from_dict({**TINY, "rope_parameters": {SLIDING: entry}})


def test_labels_that_contradict_each_other():
    with pytest.raises(ValueError, match="'num_labels'"):
        EncoderConfig.from_dict({**TINY, "num_labels": 3, "id2label": {"0": "a"}})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"vocab_size": 96, "vocab_size": 97}',
        b" " * (2**24 + 1),
    ],
    ids=["empty", "list", "cut", "encoding", "deep", "twice", "large"],
)
def test_files_that_are_not_a_config(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json"):
        EncoderConfig.from_file(tmp_path / "config.json")


@pytest.mark.parametrize(
    "entry",
    [
        {"rope_type": "default", "rope_theta": 160000},
        {"rope_type": "default", "rope_theta": 12345.6},
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "linear", "factor": 7},
        YARN,
        {**YARN, "factor": 1.0},
        {**YARN, "factor": 16.0, "beta_fast": 20, "beta_slow": 2.0, "truncate": False},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 0.5},
        {**YARN, "attention_factor": 1.25},
        {**YARN, "original_max_position_embeddings": 8, "rope_theta": 100.0},
        {**YARN, "original_max_position_embeddings": 6},  # both bounds of the ramp are 0
        LLAMA3,
        {**LLAMA3, "factor": 32, "rope_theta": 500000.0},
        {"rope_type": "proportional", "partial_rotary_factor": 0.25},
        {"rope_type": "proportional", "factor": 3.0},
    ],
    ids=lambda entry: entry["rope_type"],
)
@pytest.mark.parametrize("head_dim", [2, 16, 64, 100])
def test_inv_freq_is_that_of_transformers_bit_for_bit(transformers, entry, head_dim):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding

    if entry["rope_type"] not in ("default", *ROPE_INIT_FUNCTIONS):
        pytest.skip(f"this transformers has no rope type {entry['rope_type']}")
    shape = {**TINY, "hidden_size": 2 * head_dim}
    theirs = transformers.ModernBertConfig(**shape, rope_parameters={FULL: dict(entry), SLIDING: dict(entry)})
    module = ModernBertRotaryEmbedding(theirs)
    ours = EncoderConfig.from_hf(theirs)
    for kind in (FULL, SLIDING):
        frequencies, scaling = inv_freq(ours, kind)
        assert frequencies.shape == (head_dim // 2,)
        torch.testing.assert_close(frequencies, getattr(module, f"{kind}_inv_freq"), rtol=0, atol=0)
        assert scaling == getattr(module, f"{kind}_attention_scaling")


@pytest.mark.parametrize(
    "entry",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    ],
    ids=lambda entry: entry["rope_type"],
)
def test_inv_freq_refuses_what_depends_on_the_length(entry):
    config = EncoderConfig.from_dict({**TINY, "rope_parameters": {FULL: entry}})
    assert EncoderConfig.from_dict(config.to_dict()) == config
    with pytest.raises(NotImplementedError, match=entry["rope_type"]):
        inv_freq(config, FULL)
    assert inv_freq(config, SLIDING)[1] == 1.0


def test_inv_freq_ignores_default_dtype_and_device():
    with torch.device("meta"):
        frequencies, _ = inv_freq(EncoderConfig(), FULL)
    assert (frequencies.dtype, frequencies.device.type) == (torch.float32, "cpu")


def test_window_of_an_unknown_layer_type():
    with pytest.raises(ValueError, match="layer_types"):
        EncoderConfig().window("global")
