"""Dynamic masking for masked language modelling: which tokens, and what becomes of them, drawn anew every epoch.

Every draw is a hash of (seed, key of the piece and its epoch, position in the piece). So it depends neither on the
batch, nor on the worker or rank, nor on earlier draws; and integers alone decide, so that devices agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from modernbert_fast import heads
from modernbert_fast.training.flatten import flatten

MASKED, RANDOM = 0.8, 0.1  # shares of the chosen tokens that become [MASK] or a random id; the rest stay
SpecialTokens = Literal["keep", "mask"]


def mask_tokens(
    ids: Tensor,
    keys: Tensor,
    positions: Tensor,
    *,
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int] = (),
    seed: int = 0,
    rate: float = 0.3,
    special_tokens: SpecialTokens = "keep",
) -> tuple[Tensor, Tensor]:
    """Chooses tokens at a rate; 80 % of them become [MASK], 10 % a random id, 10 % stay.

    Args:
        ids: int64 of any shape, on any device.
        keys, positions: int64 of the same shape: the piece and epoch that a token is of, and its place in the piece.
            Where a key is negative nothing is chosen: the fillers of a last round of batches.
        mask_id: of [MASK].
        vocab_size: random ids are drawn from all ids below it.
        special_ids: ids of special tokens.
        seed: of all draws.
        rate: the share of tokens that is chosen, 0 to 1.
        special_tokens: "keep" never chooses one (as transformers does), "mask" makes no difference between tokens (as
            ModernBERT was trained).

    Returns:
        The masked ids, and labels: the id where a token was chosen, -100 elsewhere. Nothing may be chosen at all.

    Raises:
        ValueError: when a number is out of its range.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be from 0 to 1, got {rate}")
    if special_tokens not in ("keep", "mask"):
        raise ValueError(f"special_tokens must be 'keep' or 'mask', got {special_tokens!r}")
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"mask_id must be an id below vocab_size ({vocab_size}), got {mask_id}")
    draws = _mix(_mix(keys ^ _signed(seed * GOLDEN)) + positions * GOLDEN)
    chosen = (_shifted(draws, 40) < round(rate * 2**24)) & (keys >= 0)
    if special_tokens == "keep" and len(special_ids):
        chosen &= ~torch.isin(ids, torch.tensor(special_ids, device=ids.device))
    lot = draws & (2**24 - 1)  # bits that had no part in the choice
    any_id = _shifted(_mix(draws), 1) % vocab_size
    replaced = torch.where(lot < round((MASKED + RANDOM) * 2**24), any_id, ids)
    replaced = torch.where(lot < round(MASKED * 2**24), mask_id, replaced)
    return torch.where(chosen, replaced, ids), torch.where(chosen, ids, heads.IGNORE)


@dataclass(frozen=True)
class MaskedLMCollator:
    """Features to one flattened batch with labels, for transformers' Trainer or a PackedLoader.

    A feature has `input_ids` with special tokens, and may have: `key`, without which torch's generator draws one, so
    that masks differ in every epoch; `attention_mask`, whose zeros are dropped; `sentence_order_label`, which is passed
    on as (B,). The rest is ignored.

    Attributes:
        mask_id, vocab_size, special_ids, seed, rate, special_tokens: as for mask_tokens.
        on_device: leaves masking to the training step: the batch has `keys` (B,), and `mask(batch)` does the rest where
            its tensors are.
    """

    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...]
    seed: int = 0
    rate: float = 0.3
    special_tokens: SpecialTokens = "keep"
    on_device: bool = False

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, **options: Any) -> MaskedLMCollator:
        """With the ids of a transformers tokenizer; options are attributes of this class."""
        return cls(tokenizer.mask_token_id, len(tokenizer), tuple(sorted(tokenizer.all_special_ids)), **options)

    @classmethod
    def from_store(cls, store: Any, **options: Any) -> MaskedLMCollator:
        """With the ids of a TokenStore."""
        return cls(store.mask_id, store.vocab_size, store.special_ids, **options)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """flatten() of the texts, with labels (1, T) unless on_device.

        Raises:
            ValueError: when there is no text, or one is empty.
        """
        batch = flatten([_ids(feature) for feature in features])
        keys = [int(feature["key"]) if "key" in feature else _draw_key() for feature in features]
        batch["keys"] = torch.tensor(keys)
        if "sentence_order_label" in features[0]:
            labels = torch.tensor([int(feature["sentence_order_label"]) for feature in features])
            batch["sentence_order_label"] = labels.where(batch["keys"] >= 0, heads.IGNORE)
        return batch if self.on_device else self.mask(batch)

    def mask(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch that has `keys`, masked: new input_ids, and labels in place of the keys."""
        masked = dict(batch)
        positions, bounds = batch["position_ids"], batch["cu_seq_lens_q"]
        keys = masked.pop("keys").repeat_interleave(bounds.diff(), output_size=positions.numel())
        masked["input_ids"], masked["labels"] = mask_tokens(
            batch["input_ids"],
            keys.view_as(positions),
            positions,
            mask_id=self.mask_id,
            vocab_size=self.vocab_size,
            special_ids=self.special_ids,
            seed=self.seed,
            rate=self.rate,
            special_tokens=self.special_tokens,
        )
        return masked


def _ids(feature: Mapping[str, Any]) -> np.ndarray:
    ids = np.asarray(feature["input_ids"], np.int64)
    if "attention_mask" not in feature:
        return ids
    return ids[np.asarray(feature["attention_mask"]) != 0]


def _draw_key() -> int:
    return int(torch.randint(2**62, ()))


def _signed(value: int) -> int:
    """The 64 bits of a number as int64 has them."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


# The finaliser of SplitMix64, and the odd number nearest to 2**64 over the golden ratio.
GOLDEN = _signed(0x9E3779B97F4A7C15)
FIRST, SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; that of int64 copies the sign."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _mix(x: Tensor) -> Tensor:
    """A bijection of 64 bits in which every input bit changes about half of the output bits."""
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)
