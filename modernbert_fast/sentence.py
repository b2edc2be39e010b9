"""sentence-transformers' models on packed rows, under the same class names. Only accelerate.py imports this.

Their Transformer module calls a ModernBERT of transformers, which hf_encoder.py packs at once. What comes after it is
here: pooling, the tail of many vectors a text, and SPLADE's maximum read packed rows, so that a text's vectors do not
depend on its batch. A pipeline or a call that this does not know runs as sentence-transformers wrote it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
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

_TEXT_FEATURES = {"input_ids", "attention_mask", "token_type_ids", "modality", "prompt_length"}
_EXPANSION = "query_expansion_positions"
_UNSEEN = "query expansion by tokens that no token attends to runs on the stock path"


def _encoder(model: nn.Module, *after: type[nn.Module]) -> Any:
    """The accelerated ModernBERT of a pipeline of Transformer and `after`, all untouched; None of any other."""
    found = list(model.children())
    kinds = (Transformer, *after)
    if getattr(model, "module_kwargs", None) or [type(module) for module in found[: len(kinds)]] != [*kinds]:
        return None
    if not all(map(modules.is_untouched, found)):
        return None
    inner = found[0].model
    encoder = inner if isinstance(inner, hf_encoder.ModernBertModel) else getattr(inner, "model", None)
    is_ours = isinstance(encoder, hf_encoder.ModernBertModel) and not encoder.config.output_hidden_states
    return encoder if is_ours and not hf_encoder.objections(encoder, None, {}) else None


def _packed(features: dict[str, Any], *more: str) -> PackedBatch | None:
    """The batch of padded texts; None of features of another kind, `more` names aside, or of masks with holes."""
    ids, mask = features.get("input_ids"), features.get("attention_mask")
    if ids is None or mask is None or not features.keys() <= _TEXT_FEATURES.union(more):
        return None
    if features.get("modality", "text") != "text" or ids.dim() != 2 or mask.shape != ids.shape:
        return None
    batch = PackedBatch.from_padded((ids.shape[0], ids.shape[1]), mask)
    return batch if batch.columns is None else None


def _flat(ids: torch.Tensor, batch: PackedBatch) -> dict[str, Any]:
    """Features of packed ids (T,), as sentence-transformers gives them to an encoder that takes no padding."""
    bounds, longest = batch.cu_seqlens, batch.max_seqlen
    lengths = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
    return {"input_ids": ids[None], "modality": "text", **lengths}


class SentenceTransformer(stock.SentenceTransformer):
    """Pooling by first tokens and means reads packed rows; the tokens are laid out as before for whoever wants them."""

    def forward(self, input: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if kwargs or _encoder(self, Pooling) is None:
            return super().forward(input, **kwargs)
        transformer, pooling, *rest = self.children()
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
        if _encoder(self, SpladePooling) is None or len(list(self.children())) > 2:
            return super().forward(input, **kwargs)
        transformer, pooling = self.children()
        if pooling.pooling_strategy != "max" or (batch := _packed(input)) is None:
            return super().forward(input, **kwargs)
        logits = transformer(_flat(batch.unpad(input["input_ids"]), batch))["token_embeddings"][0]
        largest = torch.stack([text.amax(dim=0) for text in logits.split(batch.cu_seqlens.diff().tolist())])
        weights = largest.relu().log1p()
        if pooling.activation_function == "log1p_relu":
            weights = weights.log1p()
        pooling.embedding_dimension = pooling.embedding_dimension or weights.shape[1]
        return {**input, "sentence_embedding": weights}


class MultiVectorEncoder(stock.MultiVectorEncoder):
    """encode() keeps its vectors packed from the tokenizer to the list that it returns.

    Nothing waits for a GPU between two batches: which tokens count is known before the model runs.
    """

    def forward(self, input: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if _EXPANSION not in input or self[0].query_expansion["attend"] or (encoder := _encoder(self)) is None:
            return super().forward(input, **kwargs)
        with _stock_path(encoder, _UNSEEN):  # the vectors of those tokens count, and packed rows have none
            return super().forward(input, **kwargs)

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(stock.MultiVectorEncoder.encode).bind(self, inputs, *args, **kwargs)
        given.apply_defaults()
        call = given.arguments
        more = call["kwargs"] or call["pool"] or call["token_pooling"] or isinstance(call["device"], list)
        texts = isinstance(inputs, list) and all(isinstance(text, str) for text in inputs) and call["batch_size"] > 0
        if more or not texts or call["output_value"] != "token_embeddings" or self._tail(call["task"]) is None:
            return super().encode(inputs, *args, **kwargs)
        if call["device"] is not None:
            self.to(call["device"])
        self.eval()
        prompt, size = self._resolve_prompt(call["prompt"], call["prompt_name"]), call["batch_size"]
        order = sorted(range(len(inputs)), key=lambda i: -self._input_length(inputs[i]))
        found: dict[int, torch.Tensor] = {}
        for start in trange(0, len(inputs), size, desc="Encoding", disable=not call["show_progress_bar"]):
            chosen = order[start : start + size]
            features = self.preprocess([inputs[i] for i in chosen], prompt=prompt, task=call["task"])
            with torch.inference_mode():
                vectors = self._vectors(features, call["task"], call["normalize_embeddings"])
            found |= zip(chosen, (v.cpu() for v in vectors) if call["convert_to_numpy"] else vectors, strict=True)
        vectors = [found[i] for i in range(len(inputs))]
        if call["convert_to_numpy"]:
            return [(v.float() if v.dtype == torch.bfloat16 else v).numpy() for v in vectors]
        return vectors

    def _tail(self, task: str | None) -> tuple[list[Any], Any, bool] | None:
        """Dense modules, the mask, and whether vectors get unit length; None where stock's own loop is needed."""
        unseen = task == "query" and (self[0].query_expansion or {}).get("attend") is False
        elsewhere = getattr(self, "_distributed_inference", None) is not None or self._compiled_call_impl is not None
        if unseen or elsewhere or not modules.is_untouched(self) or _encoder(self) is None:
            return None
        dense, mask, normalize = [], None, False
        for module in list(self.children())[1:]:
            names = {getattr(module, f"module_{side}_name", "token_embeddings") for side in ("input", "output")}
            if type(module) is Dense and names == {"token_embeddings"} and not normalize:
                dense.append(module)
            elif type(module) is MultiVectorMask and mask is None:
                mask = module
            elif type(module) is Normalize and names == {"token_embeddings"}:
                normalize = True
            else:
                return None
        return None if mask is None else (dense, mask, normalize)

    def _vectors(self, features: dict[str, Any], task: str | None, normalize: bool) -> tuple[torch.Tensor, ...]:
        """The vectors (n, D) of each text, on the model's device."""
        dense, mask, unit = self._tail(task)
        device = self.device
        if (batch := _packed(features, _EXPANSION)) is None:
            out = self(_moved(features, device), task=task)
            rows = [x[m] for x, m in zip(out["token_embeddings"], out["attention_mask"].bool(), strict=True)]
            return tuple(torch.nn.functional.normalize(x, dim=-1) for x in rows) if normalize else tuple(rows)
        ids = batch.unpad(features["input_ids"])
        tokens = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])}
        kept = mask(tokens, task=task)["attention_mask"][0].bool()
        bounds = batch.cu_seqlens.long()
        counts = torch.nn.functional.pad(kept.cumsum(0), (1, 0))[bounds].diff().tolist()
        rows = self[0](_moved(_flat(ids, batch), device))["token_embeddings"][0]
        for module in dense:
            rows = tail.dense(module, rows)
        vectors = tail.select(rows, kept.nonzero().squeeze(1).to(device), unit or normalize)
        return torch.split_with_sizes_copy(vectors, counts)


def _moved(features: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in features.items()}


@contextlib.contextmanager
def _stock_path(encoder: Any, reason: str) -> Iterator[None]:
    """Within the block the encoder takes transformers' own forward, and says why once."""
    settings = encoder.modernbert_fast_settings
    former = settings.static
    settings.static = (*former, reason)
    try:
        yield
    finally:
        settings.static = former


CLASSES: dict[type, type] = {
    stock.SentenceTransformer: SentenceTransformer,
    stock.SparseEncoder: SparseEncoder,
    stock.MultiVectorEncoder: MultiVectorEncoder,
}
