"""Texts as the vectors of an index, by a sentence-transformers model that runs packed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import modernbert_fast as mf

_SETTINGS = "config_sentence_transformers.json"


class TextEncoder:
    """A model that makes vectors of texts: many a text from a MultiVectorEncoder, else one.

    Args:
        folder: a checkpoint of sentence-transformers, or of a plain ModernBERT (mean pooling).
        device: as torch names it; sentence-transformers' choice when None.
        dtype: of weights and activations; as stored when None.

    Raises:
        ImportError: without sentence-transformers 6 or later.
        OSError, ValueError: not a checkpoint, or one whose weights are pickled.
    """

    def __init__(self, folder: Path, device: str | None = None, dtype: torch.dtype | None = None):
        import sentence_transformers as st

        for pickled in folder.rglob(
            "pytorch_model.bin"
        ):  # sentence-transformers would unpickle those of its own modules
            if not pickled.with_name("model.safetensors").exists():
                raise ValueError(f"{pickled}: weights are read from safetensors only")
        settings = folder / _SETTINGS
        kind = json.loads(settings.read_text()).get("model_type") if settings.is_file() else None
        self.multi = kind in ("MultiVectorEncoder", "ColBERT")  # the latter is PyLate's
        weights: dict[str, Any] = {"use_safetensors": True, **({} if dtype is None else {"dtype": dtype})}
        options: dict[str, Any] = {"device": device, "local_files_only": True, "model_kwargs": weights}
        model = (st.MultiVectorEncoder if self.multi else st.SentenceTransformer)(str(folder), **options)
        self.model = mf.accelerate(model)

    def documents(self, texts: Sequence[str], batch: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors (T, D) on the CPU and bounds (N + 1,) int32 of N documents."""
        return self._packed(self.model.encode_document, texts, batch)

    def queries(self, texts: Sequence[str], batch: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of queries."""
        return self._packed(self.model.encode_query, texts, batch)

    def _packed(self, encode: Any, texts: Sequence[str], batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = encode(list(texts), batch_size=batch, show_progress_bar=False, convert_to_numpy=False)  # tensors
        bounds = torch.tensor([0, *(len(row) if self.multi else 1 for row in rows)]).cumsum(0).int()
        if self.multi:
            return torch.cat(rows).cpu().float(), bounds
        return torch.nn.functional.normalize(torch.stack(list(rows)).cpu().float(), dim=1), bounds
