"""StableAdamW of torch-optimi, as the paper sets it: fully decoupled weight decay, clipped updates, not gradients."""

from __future__ import annotations

from typing import Any


def stable_adamw(learning_rate: float, weight_decay: float, *, triton: bool = False) -> tuple[type, dict[str, Any]]:
    """The class and its arguments, for Trainer's `optimizer_cls_and_kwargs`; Trainer decays no norm and no bias.

    Args:
        learning_rate: the highest of the schedule.
        weight_decay: taken off a weight at that rate, and in proportion at lower ones; not multiplied by the rate.
        triton: one kernel a parameter, on GPUs, and not for DTensors.

    Raises:
        ImportError: without torch-optimi.
    """
    try:
        from optimi import StableAdamW
    except ImportError as error:
        raise ImportError(f"StableAdamW is torch-optimi's (pip install modernbert-fast[train]): {error}") from error
    return StableAdamW, {
        "lr": learning_rate,
        "max_lr": learning_rate,
        "betas": (0.9, 0.98),
        "eps": 1e-6,
        "weight_decay": weight_decay,
        "decouple_lr": True,
        "foreach": False,
        "triton": triton,  # left to itself it would choose Triton on a CPU too
    }
