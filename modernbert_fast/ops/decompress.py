"""Vectors of 4 bits an element, as integers again. Reference: modernbert_fast/reference/decompress.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from modernbert_fast.dispatch import call_of
from modernbert_fast.library import define
from modernbert_fast.ops import checks

LEVELS = 16


def check_compressed(codes: torch.Tensor, nearest: torch.Tensor, centroids: torch.Tensor, levels: torch.Tensor) -> None:
    """What the ops that take compressed vectors ask of them."""
    checks.shape("centroids", centroids, None, None)
    checks.shape("nearest", nearest, None)
    checks.shape("codes", codes, nearest.shape[0], (centroids.shape[1] + 1) // 2)
    checks.shape("levels", levels, centroids.shape[0], LEVELS)
    wanted = {"codes": torch.uint8, "nearest": torch.int16, "centroids": torch.int8, "levels": torch.int8}
    for (name, dtype), x in zip(wanted.items(), (codes, nearest, centroids, levels), strict=True):
        if x.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {x.dtype}")
    checks.same_device(codes, nearest=nearest, centroids=centroids, levels=levels)
    if nearest.shape[0] and not centroids.shape[0]:
        raise IndexError(f"nearest has {nearest.shape[0]} entries, but there are no centroids")
    checks.index_range("nearest", nearest, centroids.shape[0])


_forward = define(
    "decompress_forward(Tensor codes, Tensor nearest, Tensor centroids, Tensor levels) -> Tensor",
    op="decompress",
    fake=lambda codes, nearest, centroids, levels: centroids.new_empty((nearest.shape[0], centroids.shape[1])),
    call=lambda codes, nearest, centroids, levels: call_of(centroids),
    check=check_compressed,
)


def decompress(
    codes: torch.Tensor, nearest: torch.Tensor, centroids: torch.Tensor, levels: torch.Tensor
) -> torch.Tensor:
    """Adds to the centroid of each vector one of 16 levels an element.

    Args:
        codes: (T, H) uint8, H half of D rounded up; byte h names the level of element h in its low four bits and that
            of element H + h in its high ones.
        nearest: (T,) int16, the centroid of each vector.
        centroids: (K, D) int8.
        levels: (K, 16) int8, those of the vectors of each centroid.

    Returns:
        (T, D) int8; sums are modulo 256.

    Raises:
        ValueError, TypeError: on shapes or dtypes that do not fit; IndexError: on a centroid outside [0, K).
    """
    return _forward(codes, nearest, centroids, levels)


@dataclass(frozen=True, eq=False)
class Compressed:
    """Arguments of `decompress`, which stand for a tensor (T, D) int8; rows are taken of it as they are of a tensor.

    Attributes: as the arguments.
    """

    codes: torch.Tensor
    nearest: torch.Tensor
    centroids: torch.Tensor
    levels: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.nearest.shape[0], self.centroids.shape[1]

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in vars(self).values())

    def __getitem__(self, rows: Any) -> Compressed:
        return Compressed(self.codes[rows], self.nearest[rows], self.centroids, self.levels)

    def to(self, device: torch.device) -> Compressed:
        return Compressed(**{name: x.to(device) for name, x in vars(self).items()})

    def char(self) -> torch.Tensor:
        return decompress(**vars(self))

    def float(self) -> torch.Tensor:
        return self.char().float()
