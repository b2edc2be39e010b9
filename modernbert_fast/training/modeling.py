"""ModernBertForPreTraining: masked tokens and the order of two segments, saved beside transformers' own classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import ModernBertConfig, ModernBertForMaskedLM
from transformers import initialization as init
from transformers.models.modernbert.modeling_modernbert import ModernBertPredictionHead
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from modernbert_fast import heads


@dataclass
class ModernBertForPreTrainingOutput(ModelOutput):
    """Names as in transformers' AlbertForPreTrainingOutput; what was not asked for is None.

    Attributes:
        loss: of masked tokens plus of order, of those whose labels were given.
        prediction_logits: (B, S, V); none with labels where the model was accelerated with `loss_only`.
        sop_logits: (texts, ways).
    """

    loss: torch.Tensor | None = None
    prediction_logits: torch.Tensor | None = None
    sop_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor | None, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class ModernBertForPreTraining(ModernBertForMaskedLM):
    """ModernBertForMaskedLM and, on the first row of each text, a prediction head and a classifier of its order.

    The parameters of ModernBertForMaskedLM keep their names: a folder saved by either loads as the other. In the
    config, `sentence_order_labels` is 2 (ALBERT's right order or swapped; the default) or 3 (next, previous, random).

    Raises:
        ValueError: on another number of labels.
    """

    def __init__(self, config: ModernBertConfig) -> None:
        config.sentence_order_labels = getattr(config, "sentence_order_labels", 2)
        if config.sentence_order_labels not in (2, 3):
            raise ValueError(f"sentence_order_labels is {config.sentence_order_labels!r}, expected 2 or 3")
        super().__init__(config)
        self.order_head = ModernBertPredictionHead(config)
        self.drop = nn.Dropout(config.classifier_dropout)
        self.order_classifier = nn.Linear(config.hidden_size, config.sentence_order_labels)
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: of classes outside transformers it would not initialise prediction heads as its own, part by part."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is getattr(self, "order_classifier", None):  # as the classifiers of transformers' own heads
            std = self.config.hidden_size**-0.5
            cutoff = (self.config.initializer_cutoff_factor or 3) * std
            init.trunc_normal_(module.weight, mean=0.0, std=std, a=-cutoff, b=cutoff)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        sentence_order_label: torch.Tensor | None = None,
        num_texts_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits of tokens and of order, and the sum of their losses.

        Args:
            labels: of tokens, in the shape of input_ids; -100 costs nothing, and only -100 costs nothing: a loss of 0
                with zero gradients.
            sentence_order_label: (texts,); -100 costs nothing.
            num_texts_in_batch: divides the sum of the order losses, as num_items_in_batch divides that of the tokens:
                the counts of all micro-batches of a step. With the latter alone, the mean over this call's texts
                weighs what its labelled tokens are of those of the step.
        """
        inputs = {"attention_mask": attention_mask, "position_ids": position_ids, "inputs_embeds": inputs_embeds}
        encoded = self.model(input_ids=input_ids, **inputs, **kwargs)
        hidden, num_items, loss = encoded[0], kwargs.get("num_items_in_batch"), None
        rows, targets = hidden, labels
        if self.sparse_prediction and labels is not None:
            labelled = labels != self.sparse_pred_ignore_index
            rows, targets = hidden[labelled], labels[labelled]
        logits = self.decoder(self.head(rows))
        if targets is not None and "_loss_function" in vars(self):
            loss = self.loss_function(logits, targets, vocab_size=self.config.vocab_size, **kwargs)
        elif targets is not None:
            loss = heads.rows_loss(logits.flatten(0, -2), targets.flatten(), num_items)
        first = _first_rows(hidden, attention_mask, kwargs.get("cu_seq_lens_q"))
        sop_logits = self.order_classifier(self.drop(self.order_head(first)))
        if sentence_order_label is not None:
            order = heads.order_loss(sop_logits, sentence_order_label, num_texts_in_batch, labels, num_items)
            loss = order + (0 if loss is None else loss)
        return ModernBertForPreTrainingOutput(loss, logits, sop_logits, encoded.hidden_states, encoded.attentions)


def _first_rows(hidden: torch.Tensor, mask: Any, bounds: torch.Tensor | None) -> torch.Tensor:
    """The first token of each text, whatever its padding: hidden (B, S, C) -> (texts, C)."""
    if bounds is not None:
        return hidden[0, bounds[:-1].long()]
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        return hidden[torch.arange(len(hidden), device=hidden.device), (mask != 0).int().argmax(1)]
    return hidden[:, 0]
