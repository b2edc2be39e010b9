"""modernbert_fast: ModernBERT packed once and never padded again, on the fastest kernels this machine has.

model = modernbert_fast.accelerate(AutoModel.from_pretrained("answerdotai/ModernBERT-base"))
"""

from modernbert_fast import dispatch, library, ops
from modernbert_fast.accelerate import accelerate, accelerated, is_accelerated, report, restore
from modernbert_fast.batch import PackedBatch
from modernbert_fast.config import EncoderConfig
from modernbert_fast.dispatch import use_backend
from modernbert_fast.model import ModernBert, ModernBertWithHead

__version__ = "0.1.0"

__all__ = [
    "EncoderConfig",
    "ModernBert",
    "ModernBertWithHead",
    "PackedBatch",
    "accelerate",
    "accelerated",
    "dispatch",
    "is_accelerated",
    "library",
    "ops",
    "report",
    "restore",
    "use_backend",
]
