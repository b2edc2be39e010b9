"""ModernBert without transformers: a module tree with the same names, and checkpoints read by checkpoint.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from os import PathLike
from typing import Any

import torch
from torch import nn

from modernbert_fast import checkpoint, encoder, heads
from modernbert_fast.batch import PackedBatch
from modernbert_fast.config import EncoderConfig
from modernbert_fast.graphs import Graphs

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "mish": nn.Mish,
    "leaky_relu": nn.LeakyReLU,
    "relu6": nn.ReLU6,
}


def activation(name: str) -> nn.Module:
    """The activation that a config names.

    Raises:
        ValueError: on a name that is not known, with the names that are.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


class Embeddings(nn.Module):
    """Token table and norm, named as in transformers."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.drop = nn.Dropout(config.embedding_dropout)

    def forward(self, ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None = None) -> torch.Tensor:
        return encoder.embed(self, ids, inputs_embeds)


class Attention(nn.Module):
    """Parameters of one attention block; `encoder.layer` computes with them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.out_drop = nn.Dropout(config.attention_dropout)


class MLP(nn.Module):
    """Parameters of one GeGLU block; `encoder.layer` computes with them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.act = activation(config.hidden_activation)
        self.drop = nn.Dropout(config.mlp_dropout)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)


class EncoderLayer(nn.Module):
    """One layer; its type, full or sliding attention, comes from the config."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        self.config, self.attention_type = config, config.layer_types[index]
        C = config.hidden_size
        self.attn_norm = nn.LayerNorm(C, eps=config.norm_eps, bias=config.norm_bias) if index else nn.Identity()
        self.attn = Attention(config)
        self.mlp_norm = nn.LayerNorm(C, eps=config.norm_eps, bias=config.norm_bias)
        self.mlp = MLP(config)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, *, packed: encoder.Packed, defer: bool = False
    ) -> Any:
        return encoder.layer(self, x, residual, packed, defer)


@torch.no_grad()
def initialize(model: nn.Module, config: EncoderConfig) -> None:
    """Weights for training from scratch: truncated normal by the config and biases zero, as transformers does."""
    deviations = {
        "Wo": config.initializer_range / math.sqrt(2.0 * config.num_hidden_layers),
        "dense": config.initializer_range / math.sqrt(2.0 * config.num_hidden_layers),
        "decoder": config.initializer_range / math.sqrt(2.0 * config.num_hidden_layers),
        "classifier": config.hidden_size**-0.5,
    }
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            std = deviations.get(name.rpartition(".")[2], config.initializer_range)
            cutoff = config.initializer_cutoff_factor * std
            nn.init.trunc_normal_(module.weight, std=std, a=-cutoff, b=cutoff)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


class ModernBert(nn.Module):
    """The encoder on packed tokens, with the parameters and names of transformers' ModernBertModel.

    A new one has random weights by the config's initializer_range.

    Args:
        config: an EncoderConfig, for example `EncoderConfig.preset("base")`.

    Attributes:
        graphs: None; a `graphs.Graphs()` makes inference on a GPU replay CUDA graphs.
    """

    graphs: Graphs | None = None

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        initialize(self, config)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], dtype: torch.dtype | None = None) -> ModernBert:
        """Reads config.json and safetensors from a local folder; checkpoints with heads give their encoder.

        Args:
            folder: holds config.json and model.safetensors, or an index and its shards.
            dtype: of the parameters; as stored when None.

        Raises:
            ValueError: on a malformed file; the message names the key.
        """
        config = checkpoint.load_config(folder)
        return load(lambda: cls(config), folder, dtype)

    def forward(
        self,
        batch: PackedBatch,
        tokens: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        states: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Encodes packed texts.

        Args:
            batch: from PackedBatch.from_lists, from_padded or from_flattened.
            tokens: (T,) ids; `batch.tokens` when None.
            inputs_embeds: (T, C) instead of ids.
            states: collects (T, C) before each layer and after the last norm.

        Returns:
            (T, C) after the final norm; pool it with ops.pooling or lay it out with batch.pad.

        Raises:
            IndexError: on an id outside the vocabulary.
            NotImplementedError: in training mode with attention_dropout > 0.
        """
        if self.training and self.config.attention_dropout > 0:
            raise NotImplementedError("dropout of attention probabilities: set attention_dropout to 0 or call eval()")
        tokens = batch.tokens if tokens is None else tokens
        if (tokens is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of tokens and inputs_embeds")
        if self.graphs is not None:
            compiling = torch.compiler.is_compiling()
            if (hidden := self.graphs.encode(self, self.config, batch, tokens, states, compiling)) is not None:
                return hidden
        packed = encoder.prepare(self.config, batch, self.final_norm.weight.dtype)
        return encoder.encode(self, packed, tokens, inputs_embeds, states)


class PredictionHead(nn.Module):
    """The prediction head, named as in transformers."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.classifier_bias)
        self.act = activation(config.classifier_activation)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return heads.predict(self, x)


class ModernBertWithHead(nn.Module):
    """An encoder and one head on packed tokens, with the parameters and names of transformers' class of that name.

    Args:
        config: the encoder's, with the head's fields.
        architecture: one of ARCHITECTURES; the config's own when None.
    """

    ARCHITECTURES = (
        "ModernBertForMaskedLM",
        "ModernBertForSequenceClassification",
        "ModernBertForTokenClassification",
        "ModernBertForQuestionAnswering",
        "ModernBertForMultipleChoice",
    )

    def __init__(self, config: EncoderConfig, architecture: str | None = None) -> None:
        super().__init__()
        architecture = architecture or next(iter(config.architectures), None)
        if architecture not in self.ARCHITECTURES:
            raise ValueError(f"architectures: {architecture!r} is not one of {', '.join(self.ARCHITECTURES)}")
        self.config, self.architecture = config, architecture
        self.model = ModernBert(config)
        self.head = PredictionHead(config)
        if architecture == "ModernBertForMaskedLM":
            self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        else:
            labels = 1 if architecture == "ModernBertForMultipleChoice" else config.num_labels
            self.drop = nn.Dropout(config.classifier_dropout)
            self.classifier = nn.Linear(config.hidden_size, labels)
        initialize(nn.ModuleDict({name: part for name, part in self.named_children() if name != "model"}), config)
        if hasattr(self, "decoder"):
            self.tie()

    def tie(self) -> None:
        """Shares the token table with the decoder where the config says so."""
        if self.config.tie_word_embeddings:
            self.decoder.weight = self.model.embeddings.tok_embeddings.weight

    @classmethod
    def from_pretrained(
        cls, folder: str | PathLike[str], architecture: str | None = None, dtype: torch.dtype | None = None
    ) -> ModernBertWithHead:
        """Reads config.json and safetensors from a local folder, head and all; see ModernBert.from_pretrained."""
        config = checkpoint.load_config(folder)
        model = load(lambda: cls(config, architecture), folder, dtype)
        if hasattr(model, "decoder"):
            model.tie()
        return model

    def forward(self, batch: PackedBatch, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of packed texts.

        Returns:
            (T, V) for masked language modelling, (T, num_labels) for token classification and question answering,
            (B, num_labels) for texts; multiple choice gives one score a text.
        """
        hidden = self.model(batch, tokens)
        if hasattr(self, "decoder"):
            return heads.vocabulary_logits(self, hidden)
        if self.architecture in ("ModernBertForTokenClassification", "ModernBertForQuestionAnswering"):
            return heads.class_logits(self, hidden)
        return heads.pooled_logits(self, hidden, batch, self.config.classifier_pooling)


def load(build: Callable[[], Any], folder: str | PathLike[str], dtype: torch.dtype | None) -> Any:
    """A module in eval mode with the weights of `folder`; nothing is allocated before the shapes were checked."""
    with torch.device("meta"):
        model = build()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = {"decoder.weight"} if model.config.tie_word_embeddings else set()
    tensors = checkpoint.read(folder, shapes, optional=tied)
    model.load_state_dict(tensors, strict=False, assign=True)
    return model.to(dtype).eval()
