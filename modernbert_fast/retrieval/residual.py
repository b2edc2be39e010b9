"""Vectors in 4 bits an element: the nearest of a few centroids, and one of 16 levels of what is left of each element.

After ColBERTv2 (arXiv:2112.01488). What differs: centroids and levels are whole numbers of one byte, so that what is
decoded is int8 with a scale a document, and is searched as such.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modernbert_fast.ops.decompress import LEVELS, Compressed

LARGEST = 126  # a centroid and a level are rounded, and their sum must not leave a byte for that
MOST_CENTROIDS = 2**15  # of a segment: what int16 counts to
_VECTORS = 128  # for each centroid, at least
_CENTROIDS = 256  # of vectors that are added together; more of them hardly help (docs/decisions/0030)
_SAMPLE = 2**14  # vectors that centroids are learned from, and that are encoded at a time
_ELEMENTS = 2**17  # that levels are learned from
_ROUNDS = 8  # of k-means
_LEVEL_ROUNDS = 20
_SPREAD = 2.6  # standard deviations: where the outermost levels begin, near what is best for normal residuals


def encode(vectors: torch.Tensor) -> Compressed:
    """Vectors (T, D) fp32 within [-LARGEST, LARGEST], each element in 4 bits. The same vectors give the same bits."""
    draw = torch.Generator().manual_seed(0)
    sample = vectors[torch.randperm(len(vectors), generator=draw)[:_SAMPLE]]
    if not len(sample):
        sample = vectors.new_zeros(1, vectors.shape[1])
    centroids = _centroids(sample, max(min(len(vectors) // _VECTORS, _CENTROIDS), 1))
    few = sample[: _ELEMENTS // vectors.shape[1] + 1]
    levels = _levels((few - centroids[_nearest(few, centroids)]).flatten())
    codes, nearest = [torch.empty(0, (vectors.shape[1] + 1) // 2, dtype=torch.uint8)], [torch.empty(0).short()]
    for some in vectors.split(_SAMPLE):
        near = _nearest(some, centroids)
        places = torch.bucketize(some - centroids[near], _middles(levels), out_int32=True)
        sums = centroids[near] + levels[places]
        places += (sums < -128).int() - (sums > 127).int()  # the next level, which is within the range of a byte
        low, high = torch.nn.functional.pad(places.to(torch.uint8), (0, places.shape[1] % 2)).chunk(2, dim=1)
        codes.append(low | high << 4)
        nearest.append(near.short())
    every = levels.short().to(torch.int8).expand(len(centroids), LEVELS)  # modulo 256, as they are added
    return Compressed(torch.cat(codes), torch.cat(nearest), centroids.to(torch.int8), every)


def joined(parts: Sequence[Compressed]) -> Compressed:
    """Several, end to end: bits as they are, of the centroids those that are in use."""
    nearest, centroids, levels, count = [], [], [], 0
    for part in parts:
        used, near = part.nearest.long().unique(return_inverse=True)
        nearest.append((near + count).short())
        centroids.append(part.centroids[used])
        levels.append(part.levels[used])
        count += len(used)
    return Compressed(torch.cat([part.codes for part in parts]), *map(torch.cat, (nearest, centroids, levels)))


def _centroids(sample: torch.Tensor, count: int) -> torch.Tensor:
    """k-means: (count, D), whole numbers."""
    centroids = sample[:count]  # rows are in random order
    for _ in range(_ROUNDS):
        near = _nearest(sample, centroids)
        members = torch.bincount(near, minlength=count)[:, None]
        sums = torch.zeros_like(centroids).index_add_(0, near, sample)
        centroids = torch.where(members > 0, sums / members.clamp(min=1), centroids)
    return centroids.round()


def _nearest(vectors: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """(T,) int64, by Euclidean distance."""
    return torch.addmm(-centroids.square().sum(1) / 2, vectors, centroids.T).argmax(1)


def _levels(values: torch.Tensor) -> torch.Tensor:
    """(LEVELS,) whole numbers in order, near the values (n,): Lloyd's algorithm, which is k-means of numbers.

    The first is not above 0 and the last not below, so that a centroid can be had alone, or nearly.
    """
    deviation = float(values.std(correction=0))
    levels = values.mean() + deviation * torch.linspace(-_SPREAD, _SPREAD, LEVELS)
    for _ in range(_LEVEL_ROUNDS):
        near = torch.bucketize(values, _middles(levels))
        members = torch.bincount(near, minlength=LEVELS)
        sums = torch.zeros(LEVELS).index_add_(0, near, values)
        levels = torch.where(members > 0, sums / members.clamp(min=1), levels)
    levels[0], levels[-1] = levels[0].clamp(max=0), levels[-1].clamp(min=0)
    return levels.round()


def _middles(levels: torch.Tensor) -> torch.Tensor:
    return (levels[1:] + levels[:-1]) / 2
