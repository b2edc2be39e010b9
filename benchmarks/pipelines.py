"""sentence-transformers' kinds of model around one ModernBERT, and texts of given lengths for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from modernbert_fast import tiny
from modernbert_fast.config import EncoderConfig

DIM = 128  # of a token's vector
QUERY = 12  # words of a pair's query
EXPANDED = 32  # tokens of an expanded query


@dataclass(frozen=True)
class Kind:
    """One of them.

    Attributes:
        name: of its class, and of what it is asked.
        auto: transformers' class that its checkpoint is of.
        build: from a checkpoint's folder, keyword arguments of its weights and a device to the model.
        run: from the model, texts and a batch size to vectors or scores, (n, D) a text or (D,).
        more: tokens that a text gets beyond its own.
        expanded: tokens of each text, where that does not depend on it.
    """

    name: str
    auto: str
    build: Callable[[str, dict[str, Any], str], Any]
    run: Callable[[Any, list[str], int], Sequence[torch.Tensor]]
    more: int = 0
    expanded: int = 0

    def tokens(self, lengths: Sequence[int]) -> int:
        """Of texts of these lengths, all together."""
        return self.expanded * len(lengths) or sum(lengths) + self.more * len(lengths)


def write(config: EncoderConfig, kind: Kind, folder: Path) -> None:
    """A checkpoint with random weights and the tokenizer of the package's small model."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny.FOLDER)
    tokenizer.model_max_length = config.max_position_embeddings
    more = {"vocab_size": max(config.vocab_size, len(tokenizer)), "num_labels": 1}
    torch.manual_seed(0)
    auto = getattr(transformers, kind.auto)
    auto.from_config(transformers.ModernBertConfig.from_dict({**config.to_dict(), **more})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def texts(lengths: Sequence[int], seed: int = 0) -> list[str]:
    """Random words of the tokenizer, a token each; the first and the last token of a text are special ones."""
    import tokenizers

    vocabulary = tokenizers.Tokenizer.from_file(str(Path(tiny.FOLDER) / "tokenizer.json")).get_vocab()
    words = sorted(word[1:] for word in vocabulary if word[0] == "Ġ" and word[1:].isalpha())
    drawn = np.random.default_rng(seed)
    return [" ".join(drawn.choice(words, size=max(length - 2, 1))) for length in lengths]


def _sentence(folder: str, weights: dict[str, Any], device: str) -> Any:
    import sentence_transformers as st
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    word = Transformer(folder, model_kwargs=weights)
    pooling = Pooling(word.get_embedding_dimension(), "mean")
    return st.SentenceTransformer(modules=[word, pooling, Normalize()], device=device)


def _multi_vector(folder: str, weights: dict[str, Any], device: str, expansion: dict[str, Any] | None = None) -> Any:
    import sentence_transformers as st
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    word = Transformer(folder, model_kwargs=weights, query_expansion=expansion)
    tokens = {"module_input_name": "token_embeddings"}
    torch.manual_seed(0)
    plain = {"bias": False, "activation_function": nn.Identity()}
    dense = Dense(word.get_embedding_dimension(), DIM, **plain, **tokens).to(word.model.dtype)
    modules = [word, dense, MultiVectorMask(), Normalize(**tokens)]
    return st.MultiVectorEncoder(modules=modules, device=device)


def _colbert(folder: str, weights: dict[str, Any], device: str) -> Any:
    """Queries are filled up with [MASK], which no token attends to, as ColBERT does, and by default all others."""
    return _multi_vector(folder, weights, device, {"strategy": "fixed", "attend": False, "length": EXPANDED})


def _queries(model: Any, texts: list[str], size: int) -> Sequence[torch.Tensor]:
    """Vectors of the first 2 to 30 words of each text as a query: 4 tokens or more, 32 with the expansion."""
    queries = [" ".join(text.split()[: 2 + 7 * i % (EXPANDED - 3)]) for i, text in enumerate(texts)]
    return model.encode_query(queries, batch_size=size)


def _sparse(folder: str, weights: dict[str, Any], device: str) -> Any:
    import sentence_transformers as st
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    word = Transformer(folder, transformer_task="fill-mask", model_kwargs=weights)
    return st.SparseEncoder(modules=[word, SpladePooling()], device=device)


def _cross(folder: str, weights: dict[str, Any], device: str) -> Any:
    import sentence_transformers as st

    return st.CrossEncoder(folder, device=device, model_kwargs=weights)


def _predict(model: Any, texts: list[str], size: int) -> Sequence[torch.Tensor]:
    """Scores of a document each, all for one query."""
    query = " ".join(texts[0].split()[:QUERY])
    pairs = [(query, text) for text in texts]
    return model.predict(pairs, batch_size=size, convert_to_tensor=True, activation_fn=nn.Identity())[:, None]


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "SentenceTransformer",
            "AutoModel",
            _sentence,
            lambda model, texts, size: model.encode(texts, batch_size=size, convert_to_tensor=True),
        ),
        Kind("CrossEncoder", "AutoModelForSequenceClassification", _cross, _predict, QUERY + 1),
        Kind(
            "MultiVectorEncoder",
            "AutoModel",
            _multi_vector,
            lambda model, texts, size: model.encode_document(texts, batch_size=size),
        ),
        Kind("MultiVectorEncoder queries", "AutoModel", _colbert, _queries, expanded=EXPANDED),
        Kind(
            "SparseEncoder",
            "AutoModelForMaskedLM",
            _sparse,
            lambda model, texts, size: model.encode(texts, batch_size=size, convert_to_sparse_tensor=False),
        ),
    )
}
