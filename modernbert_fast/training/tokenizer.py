"""A tokenizer of one's own: trained on texts, saved as a folder that AutoTokenizer loads."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROLES = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
BYTES = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int = 8192) -> Any:
    """Byte-level BPE that frames a text as [CLS] A [SEP] and a pair as [CLS] A [SEP] B [SEP].

    Args:
        texts: read once, in their order; the same texts give the same tokenizer.
        vocab_size: at most so many entries, special tokens (ids 0 to 4) and the 256 bytes among them.

    Returns:
        A `tokenizers.Tokenizer`.

    Raises:
        ValueError: when vocab_size has no room for bytes and special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = list(ROLES.values())
    if vocab_size < BYTES + len(special):
        raise ValueError(f"vocab_size must be at least {BYTES + len(special)}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE(unk_token=ROLES["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    frame = [(token, tokenizer.token_to_id(token)) for token in (ROLES["cls_token"], ROLES["sep_token"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=frame
    )
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike[str], max_length: int = 8192) -> None:
    """Writes tokenizer.json and tokenizer_config.json; AutoTokenizer truncates to max_length on request."""
    from transformers import PreTrainedTokenizerFast

    Path(folder).mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        **ROLES,
    ).save_pretrained(folder)
