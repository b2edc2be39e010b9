"""sentence-transformers' models on packed rows, under the same class names. Only acceleration.py imports this.

Their Transformer module calls a ModernBERT of transformers, which hf_encoder.py packs at once. What comes after it is
here: pooling, the tail of many vectors a text, and SPLADE's maximum read packed rows, so that a text's vectors do not
depend on its batch. A pipeline or a call that this does not know runs as sentence-transformers wrote it.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from typing import Any

import sentence_transformers as stock
import torch
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch import nn
from tqdm.auto import trange

from modernbert_fast import hf_encoder, modules, ops, tail
from modernbert_fast.batch import PackedBatch
from modernbert_fast.ops.pooling import MODES

_EXPANSION = "query_expansion_positions"
_TEXT_FEATURES = {"input_ids", "attention_mask", "token_type_ids", "modality", "prompt_length", _EXPANSION}


def _parts(model: nn.Module) -> list[Any]:
    return list(model.children())


def _inner(model: nn.Module) -> Any:
    """The accelerated ModernBERT of a pipeline's first module; None where there is none."""
    inner = getattr(_parts(model)[0], "model", None)
    encoder = inner if isinstance(inner, hf_encoder.ModernBertModel) else getattr(inner, "model", None)
    return encoder if isinstance(encoder, hf_encoder.ModernBertModel) else None


def _encoder(model: nn.Module, *after: type[nn.Module]) -> Any:
    """The accelerated ModernBERT of a pipeline of Transformer and `after`, all untouched; None of any other."""
    found = _parts(model)
    kinds = (Transformer, *after)
    if getattr(model, "module_kwargs", None) or [type(module) for module in found[: len(kinds)]] != [*kinds]:
        return None
    if not all(map(modules.is_untouched, found)):
        return None
    encoder = _inner(model)
    if encoder is None or encoder.config.output_hidden_states or hf_encoder.objections(encoder, None, {}):
        return None
    return encoder


def _packed(features: dict[str, Any], unattended: torch.Tensor | None = None) -> PackedBatch | None:
    """The batch of padded texts, of all their tokens; None of features of another kind, or of masks with holes."""
    ids, mask = features.get("input_ids"), features.get("attention_mask")
    if ids is None or mask is None or not features.keys() <= _TEXT_FEATURES:
        return None
    mask = mask if unattended is None else (mask != 0) | unattended
    if features.get("modality", "text") != "text" or ids.dim() != 2 or mask.shape != ids.shape:
        return None
    batch = PackedBatch.from_padded((ids.shape[0], ids.shape[1]), mask, unattended=unattended)
    return batch if batch.columns is None else None


def _flat(ids: torch.Tensor, batch: PackedBatch) -> dict[str, Any]:
    """Features of packed ids (T,), as sentence-transformers gives them to an encoder that takes no padding."""
    bounds, longest = batch.cu_seqlens, batch.max_seqlen
    lengths = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
    expansion = {} if batch.attended is None else {"unattended": ~batch.attended[None]}
    return {"input_ids": ids[None], "modality": "text", **lengths, **expansion}


class SentenceTransformer(stock.SentenceTransformer):
    """Pooling by first tokens and means reads packed rows; the tokens are laid out as before for whoever wants them."""

    def forward(self, input: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if kwargs or _encoder(self, Pooling) is None:
            return super().forward(input, **kwargs)
        transformer, pooling, *rest = _parts(self)
        modes = (pooling.pooling_mode,) if isinstance(pooling.pooling_mode, str) else pooling.pooling_mode
        keeps_prompt = pooling.include_prompt or "prompt_length" not in input
        if not keeps_prompt or not set(modes) <= set(MODES) or (batch := _packed(input)) is None:
            return super().forward(input, **kwargs)
        rows = transformer(_flat(batch.unpad(input["input_ids"]), batch))["token_embeddings"][0]
        pooled = [ops.pooling(rows, batch.cu_seqlens, mode) for mode in modes]
        features = {**input, "token_embeddings": batch.pad(rows), "sentence_embedding": torch.cat(pooled, dim=-1)}
        for module in rest:
            features = module(features)
        return features


class SparseEncoder(stock.SparseEncoder):
    """SPLADE's maximum is taken of packed logits, before the activation, which does not change their order."""

    def forward(self, input: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if _encoder(self, SpladePooling) is None or len(_parts(self)) > 2:
            return super().forward(input, **kwargs)
        transformer, pooling = _parts(self)
        if pooling.pooling_strategy != "max" or (batch := _packed(input)) is None:
            return super().forward(input, **kwargs)
        logits = transformer(_flat(batch.unpad(input["input_ids"]), batch))["token_embeddings"][0]
        largest = torch.stack([text.max(dim=0).values for text in logits.split(batch.cu_seqlens.diff().tolist())])
        weights = largest.relu().log1p()
        if pooling.activation_function == "log1p_relu":
            weights = weights.log1p()
        pooling.embedding_dimension = pooling.embedding_dimension or weights.shape[1]
        return {**input, "sentence_embedding": weights}


class MultiVectorEncoder(stock.MultiVectorEncoder):
    """encode() keeps its vectors packed from the tokenizer to the list that it returns.

    Which tokens count is known before the model runs, so that nothing waits for a GPU after it.
    """

    def forward(self, input: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if (unattended := self._unattended(input)) is None or _inner(self) is None:
            return super().forward(input, **kwargs)
        features = super().forward({**input, "unattended": unattended}, **kwargs)
        features.pop("unattended", None)
        return features

    def _unattended(self, features: dict[str, Any]) -> torch.Tensor | None:
        """(B, S): the expansion of queries, where no token sees it though its vectors count; None of other features."""
        expansion = getattr(_parts(self)[0], "query_expansion", None)
        return features.get(_EXPANSION) if expansion and not expansion["attend"] else None

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(stock.MultiVectorEncoder.encode).bind(self, inputs, *args, **kwargs)
        given.apply_defaults()
        call = given.arguments
        more = call["kwargs"] or call["pool"] or call["token_pooling"] or isinstance(call["device"], list)
        texts = isinstance(inputs, list) and all(isinstance(text, str) for text in inputs) and call["batch_size"] > 0
        known = None if more or not texts or call["output_value"] != "token_embeddings" else self._tail()
        if known is None:
            return super().encode(inputs, *args, **kwargs)
        if call["device"] is not None:
            self.to(call["device"])
        self.eval()
        unit, as_numpy, shown = known.unit or call["normalize_embeddings"], call["convert_to_numpy"], _shows(call)
        known = dataclasses.replace(known, unit=unit)
        prompt, size = self._resolve_prompt(call["prompt"], call["prompt_name"]), call["batch_size"]
        order = sorted(range(len(inputs)), key=lambda i: -self._input_length(inputs[i]))
        found: dict[int, torch.Tensor] = {}
        for start in trange(0, len(inputs), size, desc="Encoding", disable=not shown):
            chosen = order[start : start + size]
            features = self.preprocess([inputs[i] for i in chosen], prompt=prompt, task=call["task"])
            with torch.inference_mode():
                vectors, counts = self._vectors(features, call["task"], known)
                parts = (vectors.cpu() if as_numpy else vectors).split(counts)
            found |= zip(chosen, (part.clone() for part in parts), strict=True)  # no text keeps its batch alive
        ordered = [found[i] for i in range(len(inputs))]
        return [(x.float() if x.dtype == torch.bfloat16 else x).numpy() for x in ordered] if as_numpy else ordered

    def _tail(self) -> _Tail | None:
        """What comes after the encoder; None where stock's own loop is needed."""
        elsewhere = getattr(self, "_distributed_inference", None) is not None or self._compiled_call_impl is not None
        elsewhere = elsewhere or getattr(self, "_placement_is_delegated", False)
        if elsewhere or not modules.is_untouched(self) or _encoder(self) is None:
            return None
        dense: list[Any] = []
        masks: list[Any] = []
        unit = False
        for module in _parts(self)[1:]:
            names = {getattr(module, f"module_{side}_name", "token_embeddings") for side in ("input", "output")}
            if type(module) is Dense and names == {"token_embeddings"} and not unit:
                dense.append(module)
            elif type(module) is Normalize and names == {"token_embeddings"}:
                unit = True
            elif type(module) is MultiVectorMask:
                masks.append(module)
            else:
                return None
        return _Tail(dense, masks[0], unit) if len(masks) == 1 else None

    def _vectors(self, features: dict[str, Any], task: str | None, known: _Tail) -> tuple[torch.Tensor, list[int]]:
        """The vectors (T, D) of all texts, on the model's device, and the number of each text's."""
        if (batch := _packed(features, self._unattended(features))) is None:
            out = self(_moved(features, self.device), task=task)
            kept = out["attention_mask"].bool()
            found, counts = out["token_embeddings"][kept], kept.sum(1).tolist()
            return (torch.nn.functional.normalize(found, dim=-1) if known.unit else found), counts
        ids = batch.unpad(features["input_ids"])
        tokens = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])}
        kept = known.mask(tokens, task=task)["attention_mask"][0].bool()
        counts = torch.nn.functional.pad(kept.cumsum(0), (1, 0))[batch.cu_seqlens.long()].diff().tolist()
        rows = _parts(self)[0](_moved(_flat(ids, batch), self.device))["token_embeddings"][0]
        for module in known.dense:
            rows = tail.dense(module, rows)
        return tail.select(rows, kept.nonzero().squeeze(1).to(self.device), known.unit), counts


@dataclasses.dataclass(frozen=True)
class _Tail:
    """After the encoder: projections of tokens, the mask that says which count, and whether they get unit length."""

    dense: list[Any]
    mask: Any
    unit: bool


def _shows(call: dict[str, Any]) -> bool:
    """Whether a progress bar was asked for, or is sentence-transformers' choice."""
    level = logging.getLogger(stock.MultiVectorEncoder.__module__).getEffectiveLevel()
    return level in (logging.INFO, logging.DEBUG) if call["show_progress_bar"] is None else call["show_progress_bar"]


def _moved(features: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in features.items()}


CLASSES: dict[type, type] = {
    stock.SentenceTransformer: SentenceTransformer,
    stock.SparseEncoder: SparseEncoder,
    stock.MultiVectorEncoder: MultiVectorEncoder,
}
