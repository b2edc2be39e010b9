"""Is an arm right? Its output against the stock model in a wider dtype, by the project's one error rule."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from modernbert_fast.testing import error_limit

WIDER = {torch.float32: torch.float64, torch.bfloat16: torch.float32, torch.float16: torch.float32}
CHECKED_TOKENS = 512


class ParityError(Exception):
    """An arm is further from the truth than the rule allows."""


class Parity:
    """A truth, the error that stock transformers makes against it, and the limit that follows for the rest.

    Args:
        truth: (N, C) rows in a wider dtype.
        select: from an arm's output to the rows that the truth speaks of.
    """

    def __init__(self, truth: torch.Tensor, select: Callable[[torch.Tensor], torch.Tensor]):
        self.truth, self.select = truth, select
        self.limit = float("inf")
        self.errors: dict[str, float] = {}

    def yardstick(self, name: str, output: torch.Tensor) -> None:
        """Takes the stock arm's output as the measure for all others."""
        self._measure(name, output)
        self.limit = error_limit(self.select(output), self.truth)

    def check(self, name: str, output: torch.Tensor) -> None:
        """Raises ParityError if another arm's output is beyond the limit."""
        error = self._measure(name, output)
        if not error <= self.limit:  # a NaN is beyond any limit
            raise ParityError(f"{name}: max error {error:.3g} is beyond {self.limit:.3g}")

    def _measure(self, name: str, output: torch.Tensor) -> float:
        error = self.errors[name] = max_error(self.select(output), self.truth)
        return error


def max_error(output: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest absolute difference, taken in the truth's dtype; an infinity in its right place differs by nothing."""
    wide = output.to(truth.dtype)
    return (wide - truth).abs().masked_fill(wide == truth, 0).max().item()


def parity_of_batch(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Parity:
    """Parity of hidden states (B,S,C) for a batch's first texts: CHECKED_TOKENS tokens or less, or one text.

    The truth is computed text by text, so that it owes nothing to anybody's handling of padding.

    Args:
        model: stock transformers encoder.
        input_ids, attention_mask: (B,S), padded on the right.
    """
    lengths = _first(attention_mask.sum(1).tolist(), CHECKED_TOKENS)
    wide = wider(model)
    with torch.inference_mode():
        truth = [wide(input_ids=input_ids[i : i + 1, :n]).last_hidden_state[0] for i, n in enumerate(lengths)]
    return Parity(torch.cat(truth), lambda hidden: torch.cat([hidden[i, :n] for i, n in enumerate(lengths)]))


def wider(model: Any) -> Any:
    """A copy of the model, its weights unchanged, that computes in the next wider dtype."""
    return copy.deepcopy(model).to(WIDER[next(model.parameters()).dtype])


def _first(lengths: list[int], tokens: int) -> list[int]:
    """The leading lengths that fit into `tokens`, at least one."""
    total = 0
    for count, length in enumerate(lengths):
        total += length
        if total > tokens:
            return lengths[: max(count, 1)]
    return lengths
