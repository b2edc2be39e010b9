"""EncoderConfig: every number the encoder and its heads need, under transformers' names, checked once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from modernbert_fast.untrusted import choice, integer, mapping, number, read_json, refuse, sequence, text

FULL, SLIDING = LAYER_TYPES = ("full_attention", "sliding_attention")
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")

_THETA = {FULL: 160_000.0, SLIDING: 10_000.0}
_POSITIONS_CAP = 2**24
_TOKEN_CAP = 2**31 - 1
# Upper bounds are far above any real model and keep every product of two of them inside 64 bits.
_SIZES = {
    "vocab_size": 2**24,
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**12,
    "max_position_embeddings": _POSITIONS_CAP,
    "local_attention": _POSITIONS_CAP,
    "num_labels": 2**24,
}
_FLAGS = (
    "norm_bias",
    "attention_bias",
    "mlp_bias",
    "decoder_bias",
    "classifier_bias",
    "sparse_prediction",
    "tie_word_embeddings",
)
_NUMBERS = {
    "norm_eps": (0.0, 1.0),
    "attention_dropout": (0.0, 1.0),
    "embedding_dropout": (0.0, 1.0),
    "mlp_dropout": (0.0, 1.0),
    "classifier_dropout": (0.0, 1.0),
    "initializer_range": (0.0, 1e3),
    "initializer_cutoff_factor": (0.0, 1e3),
}
_TOKENS = ("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
_PROBLEMS = (None, "regression", "single_label_classification", "multi_label_classification")
_ROPE_NUMBERS = {
    "rope_theta": (2.0, 1e15),
    "factor": (1e-3, 1e6),
    "attention_factor": (0.0, 1e3),
    "beta_fast": (0.0, 1e6),
    "beta_slow": (0.0, 1e6),
    "mscale": (0.0, 1e3),
    "mscale_all_dim": (0.0, 1e3),
    "low_freq_factor": (1e-3, 1e6),
    "high_freq_factor": (1e-3, 1e6),
    "partial_rotary_factor": (0.0, 1.0),
}
_ROPE_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
_PRESETS: dict[str, dict[str, int]] = {
    "base": {},
    "large": {
        "hidden_size": 1024,
        "intermediate_size": 2624,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
}


@dataclass(frozen=True)
class EncoderConfig:
    """Configuration of a ModernBERT encoder and its heads; the defaults are ModernBERT-base.

    Values are checked on construction. An empty `layer_types` makes every third layer full, from the first
    on; a layer type missing from `rope_parameters` gets the default rope, and the dict is for reading only.

    Raises:
        ValueError: a value has the wrong type or is out of range; the message names the key.
    """

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    norm_eps: float = 1e-5
    norm_bias: bool = False
    pad_token_id: int | None = 50283
    cls_token_id: int | None = 50281
    sep_token_id: int | None = 50282
    bos_token_id: int | None = 50281
    eos_token_id: int | tuple[int, ...] | None = 50282
    attention_bias: bool = False
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    mlp_bias: bool = False
    mlp_dropout: float = 0.0
    layer_types: tuple[str, ...] = ()
    rope_parameters: dict[str, dict[str, Any]] = field(default_factory=dict, hash=False)
    local_attention: int = 128
    decoder_bias: bool = True
    classifier_pooling: str = "cls"
    classifier_dropout: float = 0.0
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    sparse_prediction: bool = False
    sparse_pred_ignore_index: int = -100
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    initializer_cutoff_factor: float = 2.0
    num_labels: int = 2
    problem_type: str | None = None
    architectures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, cap in _SIZES.items():
            integer(key, getattr(self, key), 1, cap)
        for key in _FLAGS:
            if type(getattr(self, key)) is not bool:
                refuse(key, "true or false", getattr(self, key))
        for key, (low, high) in _NUMBERS.items():
            self._set(key, number(key, getattr(self, key), low, high))
        for key in ("hidden_activation", "classifier_activation"):
            text(key, getattr(self, key))
        integer("sparse_pred_ignore_index", self.sparse_pred_ignore_index, -(2**31), 2**31 - 1)
        choice("classifier_pooling", self.classifier_pooling, ("cls", "mean"))
        choice("problem_type", self.problem_type, _PROBLEMS)
        names = sequence("architectures", self.architectures)
        self._set("architectures", tuple(text("architectures", name) for name in names))
        self._check_heads()
        self._check_tokens()
        self._set("layer_types", self._checked_layer_types())
        rope = mapping("rope_parameters", self.rope_parameters)
        self._set("rope_parameters", {kind: self._checked_rope(kind, rope.get(kind)) for kind in LAYER_TYPES})

    def _set(self, key: str, value: object) -> None:
        object.__setattr__(self, key, value)

    def _check_heads(self) -> None:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"config key 'hidden_size': {self.hidden_size} must be a multiple of twice "
                f"'num_attention_heads', 2 * {self.num_attention_heads}: rope rotates the halves of each head"
            )

    def _check_tokens(self) -> None:
        for key in _TOKENS:
            value = getattr(self, key)
            if key == "eos_token_id" and isinstance(value, list | tuple):
                self._set(key, tuple(integer(key, token, 0, _TOKEN_CAP) for token in value))
            elif value is not None:
                # Only the padding token names a row of the table; transformers leaves the others unchecked.
                integer(key, value, 0, self.vocab_size - 1 if key == "pad_token_id" else _TOKEN_CAP)

    def _checked_layer_types(self) -> tuple[str, ...]:
        kinds = tuple(sequence("layer_types", self.layer_types)) or _pattern(self.num_hidden_layers, 3)
        if len(kinds) != self.num_hidden_layers:
            refuse("layer_types", f"{self.num_hidden_layers} entries, one per layer", kinds)
        for kind in kinds:
            choice("layer_types", kind, LAYER_TYPES)
        return kinds

    def _checked_rope(self, kind: str, given: object) -> dict[str, Any]:
        """One layer type's rope: the known keys, defaults in place; null and unknown keys are dropped."""
        at = f"rope_parameters.{kind}"
        entry = {key: value for key, value in mapping(at, given).items() if value is not None}
        rope_type = entry.get("rope_type", entry.get("type", "default"))
        choice(f"{at}.rope_type", rope_type, ROPE_TYPES)
        rope: dict[str, Any] = {"rope_type": rope_type, "rope_theta": _THETA[kind]}
        for key, (low, high) in _ROPE_NUMBERS.items():
            if key in entry:
                rope[key] = number(f"{at}.{key}", entry[key], low, high)
        if rope_type in ("yarn", "llama3", "longrope"):
            key = "original_max_position_embeddings"
            length = entry.get(key, self.max_position_embeddings)
            rope[key] = integer(f"{at}.{key}", length, 1, _POSITIONS_CAP)
        for key in ("short_factor", "long_factor"):
            if key in entry:
                factors = sequence(f"{at}.{key}", entry[key])
                rope[key] = tuple(number(f"{at}.{key}", factor, 1e-3, 1e6) for factor in factors)
        for key in _ROPE_REQUIRED.get(rope_type, ()):
            if key not in rope:
                raise ValueError(f"config key '{at}.{key}': missing, and rope type {rope_type!r} needs it")
        if rope_type == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
            refuse(f"{at}.high_freq_factor", "more than low_freq_factor", rope["high_freq_factor"])
        part = rope.get("partial_rotary_factor", 1.0)
        if part != 1.0 and rope_type not in ("default", "proportional"):
            refuse(f"{at}.partial_rotary_factor", "1, since ModernBERT rotates whole heads", part)
        return rope

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def window(self, layer_type: str) -> int:
        """Window of a layer type: token i sees j iff |i - j| <= window; -1 means no limit."""
        choice("layer_types", layer_type, LAYER_TYPES)
        return -1 if layer_type == FULL else self.local_attention // 2

    def num_parameters(self) -> int:
        """Number of parameters of the bare encoder, without any head."""
        C, F, L = self.hidden_size, self.intermediate_size, self.num_hidden_layers
        attention = 4 * C * C + self.attention_bias * 4 * C
        mlp = 3 * C * F + self.mlp_bias * (2 * F + C)
        # Two norms a layer, except that layer 0 has no attn_norm; and the embedding and final norms.
        norms = (2 * L + 1) * C * (1 + self.norm_bias)
        return self.vocab_size * C + L * (attention + mlp) + norms

    @classmethod
    def preset(cls, name: str) -> EncoderConfig:
        """The published "base" (149,014,272 parameters) or "large" (394,781,696) configuration."""
        choice("preset", name, tuple(_PRESETS))
        return cls.from_dict(_PRESETS[name])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderConfig:
        """Build from the content of a config.json, in the key style of transformers 4.48-4.57 or 5.x.

        Where both styles are present the new one wins, as in transformers 5. Keys the encoder does not need
        are ignored, names of attention implementations and of remote code among them.

        Raises:
            ValueError: a key has a bad value, or `model_type` is not "modernbert".
        """
        choice("model_type", values.get("model_type", "modernbert"), ("modernbert",))
        found = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        if found.get("architectures", ()) is None:
            del found["architectures"]
        if values.get("layer_types") is None:
            cap = _SIZES["num_hidden_layers"]
            key = "num_hidden_layers"
            layers = integer(key, values.get(key, cls.num_hidden_layers), 1, cap)
            key = "global_attn_every_n_layers"
            found["layer_types"] = _pattern(layers, integer(key, values.get(key, 3), 1, cap))
        elif values["layer_types"] in ([], ()):
            refuse("layer_types", "one entry per layer", values["layer_types"])
        if values.get("id2label") is not None:
            labels = len(mapping("id2label", values["id2label"]))
            if values.get("num_labels") not in (None, labels):
                refuse("num_labels", f"{labels}, the size of id2label", values["num_labels"])
            found["num_labels"] = labels
        found["rope_parameters"] = _rope_from_dict(values)
        return cls(**found)

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> EncoderConfig:
        """Read a config.json; see `from_dict`."""
        return cls.from_dict(read_json(Path(path)))

    @classmethod
    def from_hf(cls, config: Any) -> EncoderConfig:
        """Build from a transformers `ModernBertConfig` (anything with a `to_dict()` of that shape)."""
        return cls.from_dict(config.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Content of a config.json in both key styles, for transformers 4.48-5.x and other readers."""
        out: dict[str, Any] = {"model_type": "modernbert", **dataclasses.asdict(self)}
        out["global_rope_theta"] = self.rope_parameters[FULL]["rope_theta"]
        out["local_rope_theta"] = self.rope_parameters[SLIDING]["rope_theta"]
        layers = self.num_hidden_layers
        every = next((i for i in range(1, layers) if self.layer_types[i] == FULL), layers)
        if self.layer_types == _pattern(layers, every):
            out["global_attn_every_n_layers"] = every
        if not self.architectures:
            del out["architectures"]
        return json.loads(json.dumps(out))  # tuples become lists, as they will in the file


def _rope_from_dict(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parameters of both layer types, from either key style."""
    given = mapping("rope_parameters", values.get("rope_parameters"))
    if given and not set(given) & set(LAYER_TYPES):
        refuse("rope_parameters", f"one entry per layer type ({', '.join(LAYER_TYPES)})", given)
    bounds = _ROPE_NUMBERS["rope_theta"]
    theta = dict(_THETA)
    for key in ("rope_theta", "global_rope_theta"):  # the first is an alias; the second wins
        if values.get(key) is not None:
            theta[FULL] = number(key, values[key], *bounds)
    if "local_rope_theta" in values:
        local = values["local_rope_theta"]
        theta[SLIDING] = theta[FULL] if local is None else number("local_rope_theta", local, *bounds)
    scaling = mapping("rope_scaling", values.get("rope_scaling"))
    entries = {kind: mapping(f"rope_parameters.{kind}", given.get(kind)) for kind in LAYER_TYPES}
    return {kind: {"rope_theta": theta[kind], **entries[kind], **scaling} for kind in LAYER_TYPES}


def _pattern(layers: int, every: int) -> tuple[str, ...]:
    return tuple(SLIDING if i % every else FULL for i in range(layers))
