"""Tokenized texts as the padded batch that a Hugging Face model takes."""

from collections.abc import Sequence

import torch


def pad(ids: Sequence[Sequence[int]], pad_token_id: int | None, device: torch.device) -> dict[str, torch.Tensor]:
    """Pads on the right: input_ids and attention_mask, both (B,S) int64."""
    lengths = torch.tensor([len(text) for text in ids])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    input_ids = torch.full(mask.shape, pad_token_id or 0)
    input_ids[mask] = torch.tensor([token for text in ids for token in text])
    return {"input_ids": input_ids.to(device), "attention_mask": mask.long().to(device)}
