"""modernbert_fast: ModernBERT packed once and never padded again, on the fastest kernels this machine has.

model = modernbert_fast.accelerate(AutoModel.from_pretrained("answerdotai/ModernBERT-base"))

What is public is imported when it is first named, as the command line answers before torch could be there.
"""

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from modernbert_fast import dispatch, library, ops
    from modernbert_fast.acceleration import accelerate, accelerated, is_accelerated, report, restore
    from modernbert_fast.batch import PackedBatch
    from modernbert_fast.config import EncoderConfig
    from modernbert_fast.dispatch import use_backend
    from modernbert_fast.model import ModernBert, ModernBertWithHead

_MODULES = {
    "acceleration": ("accelerate", "accelerated", "is_accelerated", "report", "restore"),
    "batch": ("PackedBatch",),
    "config": ("EncoderConfig",),
    "dispatch": ("use_backend",),
    "library": (),
    "model": ("ModernBert", "ModernBertWithHead"),
    "ops": (),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
