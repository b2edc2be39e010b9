"""transformers' ModernBERT encoder with a packed forward, under the same class names. Only hf.py imports this.

The forward packs once, runs encoder.py, and lays the result out as transformers would; what it cannot do it hands to
the class it inherits from, and says so.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import transformers.models.modernbert.modeling_modernbert as stock
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import output_capturing

from modernbert_fast import encoder, library, modules
from modernbert_fast.batch import PackedBatch
from modernbert_fast.dispatch import host_readable
from modernbert_fast.ops import checks

logger = logging.getLogger("modernbert_fast")


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
    """Packs, encodes, lays out again. The heads pass `handover` to get the batch and the hidden states in it.

    `unattended`, of the shape of the ids, is non-zero at tokens that see the others of their text and are seen by none,
    as a ColBERT query's expansion; attention_mask is 0 there, or None where the texts lie end to end.
    """

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        handover: list[Any] | None = None,
        unattended: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        given = input_ids if input_ids is not None else inputs_embeds
        if handover is None and objections(self, attention_mask, kwargs):  # a head asked before it called
            # Capture looks the model up by the name of its class, which is not the one transformers registered. From
            # 5.20 on the registry is a dict that takes models for keys; the plain method serves both kinds.
            dict.__setitem__(output_capturing._CAN_RECORD_REGISTRY, str(type(self)), self._can_record_outputs)
            attention_mask = _seen_tokens(given, attention_mask, unattended, kwargs)
            return super().forward(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        settings = self.modernbert_fast_settings
        attention_mask = _all_tokens(given, attention_mask, unattended)
        extremes = extreme_ids(self.embeddings.tok_embeddings, input_ids, attention_mask)
        batch = _pack(given, attention_mask, position_ids, unattended, kwargs, settings.restart_position_ids)
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


def _all_tokens(given: Any, attention_mask: Any, unattended: torch.Tensor | None) -> Any:
    """The mask (B, S) with the tokens that are not attended to, or None as it was."""
    checks.same_device(given, unattended=unattended)
    checks.shape("unattended", unattended, *given.shape[:2])
    if unattended is None or attention_mask is None:
        return attention_mask
    checks.same_device(given, attention_mask=attention_mask)
    checks.shape("attention_mask", attention_mask, *given.shape[:2])
    return (attention_mask != 0) | (unattended != 0)


def _seen_tokens(given: Any, attention_mask: Any, unattended: torch.Tensor | None, kwargs: dict[str, Any]) -> Any:
    """The mask (B, S) of transformers' own forward, without the tokens that are not attended to.

    Raises:
        NotImplementedError: there are such tokens, and texts that lie end to end have no mask.
    """
    if unattended is None:
        return attention_mask
    if kwargs.get("cu_seq_lens_q") is not None:
        raise NotImplementedError("unattended tokens of texts laid end to end need the packed forward")
    seen = _all_tokens(given, attention_mask, unattended)
    seen = torch.ones_like(unattended, dtype=torch.bool) if seen is None else seen
    return seen & (unattended == 0)


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
    given: torch.Tensor, attention_mask: Any, position_ids: Any, unattended: Any, kwargs: dict[str, Any], restart: bool
) -> PackedBatch:
    """The batch of one call: flattened where cu_seq_lens_q says so, padded otherwise."""
    B, S = given.shape[:2]
    checks.same_device(given, attention_mask=attention_mask, position_ids=position_ids)
    bounds = kwargs.get("cu_seq_lens_q")
    if bounds is None and kwargs.get("cu_seq_lens_k") is not None:
        raise ValueError("cu_seq_lens_k comes with cu_seq_lens_q")
    if bounds is None:
        return PackedBatch.from_padded(
            (B, S), attention_mask, position_ids, device=given.device, restart=restart, unattended=unattended
        )
    if B != 1:
        raise ValueError(f"cu_seq_lens_q describes flattened input of shape (1, T), got a batch of {B}")
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("cu_seq_lens_q and an attention_mask with padding contradict each other")
    keys = kwargs.get("cu_seq_lens_k")
    if keys is not None and keys is not bounds and not torch.equal(keys, bounds):
        raise ValueError("cu_seq_lens_q and cu_seq_lens_k must be equal in an encoder")
    checks.same_device(given, cu_seq_lens_q=bounds)
    longest = kwargs.get("max_length_q")
    return PackedBatch.from_flattened(S, bounds, None if longest is None else int(longest), position_ids, unattended)


def _laid_out(states: list[torch.Tensor], wanted: Any, batch: PackedBatch) -> tuple[torch.Tensor | None, ...]:
    """Hidden states (T, C) -> (B, S, C); where indices were asked for, None elsewhere."""
    count = len(states)
    asked = range(count) if wanted is True else [wanted] if isinstance(wanted, int) else wanted
    chosen = {i % count for i in asked if -count <= i < count}
    return tuple(batch.pad(state) if i in chosen else None for i, state in enumerate(states))
