"""Attention by the code of older chips, which a newer GPU runs too: nothing else on it would."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import torch
from gpu.journal import Case, Skip
from gpu.sizes import Sizes

from modernbert_fast import dispatch
from modernbert_fast.testing import checks, problems

CHIPS = {"75": (torch.float16,), "80": (torch.float16, torch.bfloat16)}
LENGTHS = (130, 0, 65, 1, 512)


def cases(sizes: Sizes) -> Iterator[Case]:
    """Both layer types, both passes, on each chip's code."""
    for chip, dtypes in CHIPS.items():
        for dtype in dtypes:
            name = f"attention by the code of sm_{chip}, {str(dtype).removeprefix('torch.')}"
            yield Case(name, functools.partial(check, chip, dtype), 60.0)


def check(chip: str, dtype: torch.dtype) -> dict[str, int]:
    """The error rule, and no leak between texts."""
    former = os.environ.get("MODERNBERT_FAST_SM", "")
    os.environ["MODERNBERT_FAST_SM"] = chip  # read at each call
    checked = 0
    try:
        with dispatch.use_backend("cuda", "attention"):
            for window in (-1, 64):
                problem = problems.attention(LENGTHS, 2, 64, dtype, _device(), window=window)
                checks.check_accuracy(problem)
                checks.check_isolation(problem)
                checked += 1
    except dispatch.NoBackend as objection:
        raise Skip(str(objection)) from objection
    finally:
        os.environ["MODERNBERT_FAST_SM"] = former
    return {"problems": checked}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
