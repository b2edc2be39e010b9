"""Fixtures that more than one test file needs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """Undoes what --threads does to this process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer ModernBERT and a tokenizer trained on Python's manual."""
    pytest.importorskip("tokenizers")
    from safetensors.torch import save_file

    from modernbert_fast import ModernBert
    from modernbert_fast.commands.corpus import manual_texts, train_tokenizer
    from modernbert_fast.config import EncoderConfig

    folder = tmp_path_factory.mktemp("checkpoint")
    config = EncoderConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=512,
        local_attention=16,
        cls_token_id=1,
        bos_token_id=1,
        sep_token_id=2,
        eos_token_id=2,
        pad_token_id=3,
    )
    torch.manual_seed(0)
    save_file(ModernBert(config).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    train_tokenizer(manual_texts(), vocab_size=512).save(str(folder / "tokenizer.json"))
    return folder
