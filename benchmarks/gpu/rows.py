"""Rows of the tables: what was measured, in the units in which a reader compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modernbert_fast.timing import Measurement


def model_rows(taken: Sequence[Measurement], tokens: int, baseline: str, **shares: float) -> list[dict[str, Any]]:
    """A row an arm.

    Args:
        tokens: real ones, of a batch.
        baseline: the arm that "times" counts from.
        shares: by name, seconds that a limit would take.
    """
    medians = {measurement.name: measurement.median for measurement in taken}
    return [
        {
            "arm": m.name,
            "ms": m.median * 1e3,
            "p20": m.p20 * 1e3,
            "p80": m.p80 * 1e3,
            "Mtok/s": tokens / m.median / 1e6,
            f"x {baseline}": medians[baseline] / m.median if baseline in medians else None,
            "peak GiB": None if m.peak_bytes is None else m.peak_bytes / 2**30,
            **{name: seconds / m.median for name, seconds in shares.items()},
        }
        for m in taken
    ]
