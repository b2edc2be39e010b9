"""English text that every Python carries, and a tokenizer trained on it: a real job without a download."""

import pydoc_data.topics
from collections.abc import Iterable
from typing import Any

from modernbert_fast.commands import require

SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")


def manual_texts() -> list[str]:
    """The topics of Python's own manual, by name: from a paragraph to a chapter."""
    return [text for _, text in sorted(pydoc_data.topics.topics.items())]


def train_tokenizer(texts: Iterable[str], vocab_size: int = 8192) -> Any:
    """A byte-level BPE `tokenizers.Tokenizer` that frames each text with [CLS] and [SEP]."""
    require("tokenizers", "hf")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    frame = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    return tokenizer
