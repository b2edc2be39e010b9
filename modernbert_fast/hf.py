"""transformers' ModernBERT classes with packed forwards, under the same class names. Only accelerate.py imports this.

A forward here packs once, runs encoder.py, and lays the result out as transformers would; what it cannot do it hands
to the class it inherits from, and says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers.models.modernbert.modeling_modernbert as stock
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import output_capturing
from transformers.utils.generic import can_return_tuple

from modernbert_fast import encoder, heads, library, modules
from modernbert_fast.batch import PackedBatch
from modernbert_fast.config import EncoderConfig
from modernbert_fast.dispatch import host_readable
from modernbert_fast.graphs import Graphs
from modernbert_fast.ops import checks

logger = logging.getLogger("modernbert_fast")


@dataclass
class Settings:
    """What accelerate() was asked, kept on each accelerated ModernBertModel as `modernbert_fast_settings`.

    Attributes:
        config: the encoder's, read once.
        strict: raise where the stock path would run.
        loss_only: with labels, masked language modelling returns the loss without logits.
        restart_position_ids: a position id of 0 starts a new text.
        static: reasons why this model always takes the stock path.
        said: reasons already logged.
        graphs: the encoder's CUDA graphs, where they were asked for.
    """

    config: EncoderConfig | None
    strict: bool = False
    loss_only: bool = False
    restart_position_ids: bool = False
    static: tuple[str, ...] = ()
    said: set[str] = field(default_factory=set)
    graphs: Graphs | None = None


@dataclass
class PackedOutput:
    """What the encoder gives a head: rows (T, C), their batch, and the padded hidden states if wanted."""

    rows: torch.Tensor
    batch: PackedBatch
    hidden_states: tuple[torch.Tensor | None, ...] | None


def objections(model: Any, attention_mask: Any, kwargs: dict[str, Any], *more: str) -> list[str]:
    """Why this call takes the stock path, `more` reasons of the caller's included; empty when it is packed."""
    settings, config = getattr(model, "modernbert_fast_settings", None), model.config
    if settings is None:
        return ["an instance of an accelerated class that was never accelerated itself"]
    why = [*settings.static, *more]
    if kwargs.get("output_attentions", getattr(config, "output_attentions", False)):
        why.append("attention probabilities are returned only by the stock path")
    if isinstance(attention_mask, dict) or (attention_mask is not None and attention_mask.dim() != 2):
        why.append("masks of pairs (4-D or a dict) run on the stock path")
    if model.training and config.attention_dropout > 0:
        why.append("dropout of attention probabilities runs on the stock path")
    if kwargs.get("is_causal", getattr(config, "is_causal", False)):
        why.append("causal attention runs on the stock path")
    if not all(map(_is_driven, model.layers)):
        why.append(
            "attention or MLP blocks that are hooked or replaced, and not called when packed, run on the stock path"
        )
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        why.append("tracing and export run on the stock path")
    if why and settings.strict:
        raise NotImplementedError("; ".join(why))
    for reason in set(why) - settings.said:
        logger.warning("modernbert_fast: %s", reason)
        settings.said.add(reason)
    return why


def _is_driven(block: Any) -> bool:
    """Whether encoder.py may stand in for the block's own attention and MLP."""
    parts = ((block.attn, stock.ModernBertAttention), (block.mlp, stock.ModernBertMLP))
    return all(type(part) is kind and modules.is_untouched(part) for part, kind in parts)


class ModernBertEmbeddings(stock.ModernBertEmbeddings):
    """Packed ids (T,) or embeddings (T, C) are normed in one pass; padded ones take the stock path."""

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None) -> torch.Tensor:
        packed = input_ids.dim() == 1 if input_ids is not None else inputs_embeds.dim() == 2
        if packed:
            return encoder.embed(self, input_ids, inputs_embeds)
        return super().forward(input_ids, inputs_embeds)


class ModernBertEncoderLayer(stock.ModernBertEncoderLayer):
    """Called with `packed`, a layer of encoder.py."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, packed: Any = None, **kwargs: Any) -> Any:
        if packed is None:
            return super().forward(hidden_states, *args, **kwargs)
        residual = args[0] if args else None
        return encoder.layer(self, hidden_states, residual, packed, kwargs.get("defer", False))


class ModernBertModel(stock.ModernBertModel):
    """Packs, encodes, lays out again. The heads below pass `handover` to get the batch and the hidden states in it."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        handover: list[Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if handover is None and objections(self, attention_mask, kwargs):  # a head asked before it called
            # Capture looks the model up by the name of its class, which is not the one transformers registered. From
            # 5.20 on the registry is a dict that takes models for keys; the plain method serves both kinds.
            dict.__setitem__(output_capturing._CAN_RECORD_REGISTRY, str(type(self)), self._can_record_outputs)
            return super().forward(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        settings = self.modernbert_fast_settings
        given = input_ids if input_ids is not None else inputs_embeds
        extremes = extreme_ids(self.embeddings.tok_embeddings, input_ids, attention_mask)
        batch = _pack(given, attention_mask, position_ids, kwargs, settings.restart_position_ids)
        ids = embeds = None
        table = self.embeddings.tok_embeddings
        if input_ids is not None and not modules.is_untouched(table):
            embeds = batch.unpad(table(input_ids))  # hooks on the table may go by the sizes of (B, S, C)
        elif input_ids is not None:
            check_ids(table, extremes)
            ids = batch.unpad(input_ids)
        else:
            embeds = batch.unpad(inputs_embeds)
        wanted = kwargs.get("output_hidden_states", getattr(self.config, "output_hidden_states", False))
        states: list[torch.Tensor] | None = None if wanted is None or wanted is False else []
        hidden = None
        if settings.graphs is not None:
            compiling = torch.compiler.is_compiling()
            hidden = settings.graphs.encode(self, settings.config, batch, ids, states, compiling)
        if hidden is None:
            packed = encoder.prepare(settings.config, batch, self.final_norm.weight.dtype)
            hidden = encoder.encode(self, packed, ids, embeds, states)
        hidden_states = None if states is None else _laid_out(states, wanted, batch)
        if handover is not None:
            handover += [batch, hidden_states]
            if modules.is_untouched(self):
                return hidden
        last = batch.pad(hidden) if hidden_states is None or hidden_states[-1] is None else hidden_states[-1]
        output = BaseModelOutput(last_hidden_state=last, hidden_states=hidden_states)
        return_dict = kwargs.get("return_dict")
        return_dict = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return output if return_dict or handover is not None else output.to_tuple()


def extreme_ids(table: torch.nn.Module, ids: torch.Tensor | None, mask: torch.Tensor | None) -> library.Reading | None:
    """The smallest and the largest id of a token; None where the embedding op itself checks, or nobody can."""
    if ids is None or ids.numel() == 0 or host_readable(ids) or torch.compiler.is_compiling():
        return None
    if not hasattr(table, "num_embeddings") or (mask is not None and mask.shape != ids.shape):
        return None
    tokens = ids if mask is None else torch.where(mask != 0, ids, 0)
    return library.Reading(torch.stack(torch.aminmax(tokens)))


def check_ids(table: torch.nn.Module, extremes: library.Reading | None) -> None:
    """Token ids lie inside the table: an IndexError here, where a GPU kernel could only fault."""
    if extremes is None:
        return
    smallest, largest = extremes.get()
    if smallest < 0 or largest >= table.num_embeddings:
        raise IndexError(
            f"input_ids holds {smallest if smallest < 0 else largest}, outside [0, {table.num_embeddings})"
        )


@torch.compiler.disable
def _pack(
    given: torch.Tensor, attention_mask: Any, position_ids: Any, kwargs: dict[str, Any], restart: bool
) -> PackedBatch:
    """The batch of one call: flattened where cu_seq_lens_q says so, padded otherwise."""
    B, S = given.shape[:2]
    checks.same_device(given, attention_mask=attention_mask, position_ids=position_ids)
    bounds = kwargs.get("cu_seq_lens_q")
    if bounds is None and kwargs.get("cu_seq_lens_k") is not None:
        raise ValueError("cu_seq_lens_k comes with cu_seq_lens_q")
    if bounds is None:
        return PackedBatch.from_padded((B, S), attention_mask, position_ids, device=given.device, restart=restart)
    if B != 1:
        raise ValueError(f"cu_seq_lens_q describes flattened input of shape (1, T), got a batch of {B}")
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("cu_seq_lens_q and an attention_mask with padding contradict each other")
    keys = kwargs.get("cu_seq_lens_k")
    if keys is not None and keys is not bounds and not torch.equal(keys, bounds):
        raise ValueError("cu_seq_lens_q and cu_seq_lens_k must be equal in an encoder")
    checks.same_device(given, cu_seq_lens_q=bounds)
    longest = kwargs.get("max_length_q")
    return PackedBatch.from_flattened(S, bounds, None if longest is None else int(longest), position_ids)


def _laid_out(states: list[torch.Tensor], wanted: Any, batch: PackedBatch) -> tuple[torch.Tensor | None, ...]:
    """Hidden states (T, C) -> (B, S, C); where indices were asked for, None elsewhere."""
    count = len(states)
    asked = range(count) if wanted is True else [wanted] if isinstance(wanted, int) else wanted
    chosen = {i % count for i in asked if -count <= i < count}
    return tuple(batch.pad(state) if i in chosen else None for i, state in enumerate(states))


_CALL_LOSS_FUNCTION = (stock.ModernBertForMaskedLM, stock.ModernBertForQuestionAnswering)


class _Head(stock.ModernBertPreTrainedModel):
    """What the heads share: the encoder, packed, and `finish` on its rows; or else the stock forward."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        **kwargs: Any,
    ) -> Any:
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if (out := self.encode(self.flat(inputs), kwargs)) is None:
            return super().forward(**inputs, labels=labels, **kwargs)
        return self.finish(out, inputs, labels, kwargs)

    def flat(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The encoder's inputs."""
        return inputs

    def encode(self, inputs: dict[str, Any], kwargs: dict[str, Any]) -> PackedOutput | None:
        """The encoder's rows; None where the call takes the stock path."""
        own_loss: tuple[str, ...] = ()
        if "_loss_function" in vars(self) and isinstance(self, _CALL_LOSS_FUNCTION):
            own_loss = ("a loss function of the model's own runs on the stock path",)
        if objections(self.model, inputs["attention_mask"], kwargs, *own_loss):
            return None
        handover: list[Any] = []
        out = self.model(**inputs, handover=handover, **kwargs)
        batch, hidden_states = handover
        # Padded only where somebody's hook looks at what the encoder returns, and may have changed it.
        rows = out if isinstance(out, torch.Tensor) else batch.unpad(out[0])
        return PackedOutput(rows, batch, hidden_states)

    def finish(self, out: PackedOutput, inputs: dict[str, Any], labels: Any, kwargs: dict[str, Any]) -> Any:
        """Logits and loss of the encoder's rows."""
        raise NotImplementedError


class ModernBertForMaskedLM(_Head, stock.ModernBertForMaskedLM):
    """With labels and `loss_only`, only labelled rows meet the head, and no logits are made."""

    def finish(self, out: PackedOutput, inputs: dict[str, Any], labels: Any, kwargs: dict[str, Any]) -> Any:
        num_items, loss, logits, rows = kwargs.get("num_items_in_batch"), None, None, out.rows
        kept = None if labels is None else out.batch.unpad(labels)
        if kept is not None and self.model.modernbert_fast_settings.loss_only:
            loss = heads.masked_lm_loss(self, rows, kept, num_items)
        elif kept is None:
            logits = out.batch.pad(heads.vocabulary_logits(self, rows))
        else:
            if self.sparse_prediction:
                labelled = kept != self.sparse_pred_ignore_index
                rows, kept = rows[labelled], kept[labelled]
            scores = heads.vocabulary_logits(self, rows)
            loss = heads.rows_loss(scores, kept, num_items)
            logits = scores if self.sparse_prediction else out.batch.pad(scores)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


class ModernBertForSequenceClassification(_Head, stock.ModernBertForSequenceClassification):
    """One row a text meets the head: its first token (in any padding) or its mean."""

    def finish(self, out: PackedOutput, inputs: dict[str, Any], labels: Any, kwargs: dict[str, Any]) -> Any:
        logits, loss = heads.pooled_logits(self, out.rows, out.batch, self.config.classifier_pooling), None
        if labels is not None:
            self.config.problem_type = self.config.problem_type or heads.problem_type(labels, self.num_labels)
            loss = heads.text_loss(logits, labels, self.config.problem_type, self.num_labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


class ModernBertForTokenClassification(_Head, stock.ModernBertForTokenClassification):
    """Every token meets the head, padding does not."""

    def finish(self, out: PackedOutput, inputs: dict[str, Any], labels: Any, kwargs: dict[str, Any]) -> Any:
        scores = heads.class_logits(self, out.rows)
        loss = None if labels is None else heads.rows_loss(scores, out.batch.unpad(labels))
        return TokenClassifierOutput(loss=loss, logits=out.batch.pad(scores), hidden_states=out.hidden_states)


class ModernBertForQuestionAnswering(_Head, stock.ModernBertForQuestionAnswering):
    """Every token meets the head; the loss is over real tokens only. Spans of flattened texts count within each text."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        start_positions: Any = None,
        end_positions: Any = None,
        **kwargs: Any,
    ) -> Any:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        if (out := self.encode(inputs, kwargs)) is None:
            spans = {"start_positions": start_positions, "end_positions": end_positions}
            return stock.ModernBertForQuestionAnswering.forward(self, **inputs, **spans, **kwargs)
        scores = heads.class_logits(self, out.rows)
        start, end = (column.squeeze(-1).contiguous() for column in out.batch.pad(scores).split(1, dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            first, last = _texts_apart(scores, out.batch, start_positions)
            loss = heads.span_loss(first, last, start_positions, end_positions)
        return QuestionAnsweringModelOutput(
            loss=loss, start_logits=start, end_logits=end, hidden_states=out.hidden_states
        )


def _texts_apart(scores: torch.Tensor, batch: PackedBatch, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Scores (T, K) as K grids of a row a text, (B, S) as padded or by lengths if flattened, -inf where no token is."""
    if positions.numel() != batch.num_texts:
        raise ValueError(f"{positions.numel()} spans for {batch.num_texts} texts")
    if batch.num_texts == batch.shape[0]:
        tokens = batch.pad(torch.ones_like(scores[:, 0], dtype=torch.bool))
    else:
        lengths = batch.cu_seqlens.diff()
        tokens = torch.arange(batch.max_seqlen, device=lengths.device) < lengths[:, None]
    nothing = scores.new_full(tokens.shape, float("-inf"))
    return tuple(nothing.masked_scatter(tokens, column) for column in scores.unbind(1))


class ModernBertForMultipleChoice(_Head, stock.ModernBertForMultipleChoice):
    """Choices are texts of the packed batch; one row of each meets the head. Flattened ones need `num_choices`."""

    def flat(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """(B, choices, S, ...) -> (B * choices, S, ...)."""
        axes = {"position_ids": -2}  # may come as (1, S)
        return {name: None if value is None else value.flatten(0, axes.get(name, 1)) for name, value in inputs.items()}

    def finish(self, out: PackedOutput, inputs: dict[str, Any], labels: Any, kwargs: dict[str, Any]) -> Any:
        choices = kwargs.get("num_choices")
        if choices is None:
            choices = (inputs["inputs_embeds"] if inputs["input_ids"] is None else inputs["input_ids"]).shape[1]
        scores = heads.pooled_logits(self, out.rows, out.batch, self.config.classifier_pooling)
        logits = scores.view(scores.shape[0] // choices, choices)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


CLASSES: dict[type, type] = {
    stock.ModernBertEmbeddings: ModernBertEmbeddings,
    stock.ModernBertEncoderLayer: ModernBertEncoderLayer,
    stock.ModernBertModel: ModernBertModel,
    stock.ModernBertForMaskedLM: ModernBertForMaskedLM,
    stock.ModernBertForSequenceClassification: ModernBertForSequenceClassification,
    stock.ModernBertForTokenClassification: ModernBertForTokenClassification,
    stock.ModernBertForQuestionAnswering: ModernBertForQuestionAnswering,
    stock.ModernBertForMultipleChoice: ModernBertForMultipleChoice,
}
