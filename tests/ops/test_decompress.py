"""Decompression: every width and every sum, exact to the bit; arguments that would be read out of bounds."""

import pytest
import torch

from modernbert_fast import ops
from modernbert_fast.testing import assert_same_bits, checks, compressed, memory

OP = "decompress"


@pytest.mark.parametrize("D", [0, 1, 2, 31, 32, 33, 48, 63, 129])
@pytest.mark.parametrize("T, K", [(0, 1), (0, 0), (1, 1), (66, 300)])
def test_accuracy(backend, device, T, K, D):
    for layout in memory.LAYOUTS:
        checks.check_accuracy(compressed.decompress(T, K, D, device), layout)


def test_every_sum_of_a_centroid_and_a_level(backend, device):
    values = torch.arange(-128, 128, dtype=torch.int8, device=device)
    nearest, centroids = torch.arange(256, dtype=torch.int16, device=device), values[:, None].expand(256, 32)
    codes = (torch.arange(16, device=device) * 17).to(torch.uint8)  # both halves name the levels in order
    for levels in values.view(16, 16):
        y = ops.decompress(codes.expand(256, 16), nearest, centroids, levels.expand(256, 16))
        sums = centroids.int() + levels.int().repeat(2)
        assert_same_bits(y, ((sums + 128) % 256 - 128).to(torch.int8))


def test_refuses(backend, device):
    problem = compressed.decompress(5, 3, 8, device)
    codes, nearest, centroids, levels = problem.inputs().values()
    beyond, below = nearest.clone(), nearest.clone()
    beyond[2], below[4] = 3, -1
    for arguments, error in (
        ((codes, beyond, centroids, levels), IndexError),
        ((codes, below, centroids, levels), IndexError),
        ((codes, nearest, centroids[:0], levels[:0]), IndexError),
        ((codes[:4], nearest, centroids, levels), ValueError),
        ((codes[:, :3], nearest, centroids, levels), ValueError),
        ((codes, nearest[:, None], centroids, levels), ValueError),
        ((codes, nearest, centroids[0], levels), ValueError),
        ((codes, nearest, centroids, levels[:, :15]), ValueError),
        ((codes, nearest, centroids, levels[:2]), ValueError),
        ((codes.char(), nearest, centroids, levels), TypeError),
        ((codes, nearest.int(), centroids, levels), TypeError),
        ((codes, nearest, centroids.float(), levels), TypeError),
        ((codes, nearest, centroids, levels.to("meta")), ValueError),
    ):
        checks.check_refuses(lambda arguments=arguments: ops.decompress(*arguments), error, problem)


def test_rows_of_compressed_vectors(backend, device):
    inputs = compressed.decompress(20, 3, 9, device).inputs()
    whole, vectors = ops.decompress(**inputs), ops.Compressed(**inputs)
    assert vectors.shape == (20, 9) and vectors.device == whole.device
    for rows in (slice(3, 7), slice(0, 0), torch.arange(20, device=device) % 3 == 1):
        assert_same_bits(vectors[rows].char(), whole[rows])
        assert_same_bits(vectors[rows].float(), whole[rows].float())
