"""transformers' ModernBERT heads on packed rows, under the same class names. Only acceleration.py imports this.

A head takes the encoder's rows (hf_encoder.py) before anything is padded, and lays its own result out as transformers
would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers.models.modernbert.modeling_modernbert as stock
from transformers.modeling_outputs import (
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from modernbert_fast import heads
from modernbert_fast.batch import PackedBatch
from modernbert_fast.hf_encoder import ModernBertEmbeddings, ModernBertEncoderLayer, ModernBertModel, objections
from modernbert_fast.training import modeling

_CALL_LOSS_FUNCTION = (stock.ModernBertForMaskedLM, stock.ModernBertForQuestionAnswering)


@dataclass
class PackedOutput:
    """What the encoder gives a head: rows (T, C), their batch, and the padded hidden states if wanted."""

    rows: torch.Tensor
    batch: PackedBatch
    hidden_states: tuple[torch.Tensor | None, ...] | None


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


class ModernBertForPreTraining(ModernBertForMaskedLM, modeling.ModernBertForPreTraining):
    """The tokens' part is that of masked language modelling; the first row of each text meets the head of order."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        sentence_order_label: Any = None,
        num_texts_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        more = {"sentence_order_label": sentence_order_label, "num_texts_in_batch": num_texts_in_batch}
        return super().forward(input_ids, attention_mask, position_ids, inputs_embeds, labels, **more, **kwargs)

    def finish(self, out: PackedOutput, inputs: dict[str, Any], labels: Any, kwargs: dict[str, Any]) -> Any:
        tokens = super().finish(out, inputs, labels, kwargs)
        sop_logits, loss = heads.order_logits(self, out.rows, out.batch), tokens.loss
        if (order := kwargs["sentence_order_label"]) is not None:
            kept = None if labels is None else out.batch.unpad(labels)
            counts = kwargs["num_texts_in_batch"], kept, kwargs.get("num_items_in_batch")
            loss = heads.order_loss(sop_logits, order, *counts) + (0 if loss is None else loss)
        return modeling.ModernBertForPreTrainingOutput(loss, tokens.logits, sop_logits, out.hidden_states)


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
    """Every token meets the head; the loss is over real tokens only. Flattened texts count spans from their starts."""

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
    modeling.ModernBertForPreTraining: ModernBertForPreTraining,
    stock.ModernBertForSequenceClassification: ModernBertForSequenceClassification,
    stock.ModernBertForTokenClassification: ModernBertForTokenClassification,
    stock.ModernBertForQuestionAnswering: ModernBertForQuestionAnswering,
    stock.ModernBertForMultipleChoice: ModernBertForMultipleChoice,
}
