"""Metrics beside the arithmetic that they cannot do without, in one run.

``test_frechet.py`` and ``test_neighbours.py`` compare them with the packages that others use.
"""

import pytest
import torch
from torch import Tensor

from solverbench.backbones.extractor import Cifar16Extractor
from solverbench.benchmark.metrics import Moments, Statistics, frechet_distance
from solverbench.benchmark.metrics.neighbours import neighbour_metrics

IMAGES, ROWS, DIM, K = 64, 2000, 256, 5
ROUNDS = 9


def features(seed: int, num: int = ROWS, dim: int = DIM) -> Tensor:
    """Gaussian rows whose deviations fall from 1 to 1 / sqrt(dim)."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(num, dim, generator=rng) * torch.arange(1, dim + 1) ** -0.5


def moments(seed: int) -> Moments:
    return Statistics().update(features(seed)).moments()


@pytest.mark.quick
@torch.no_grad()
def test_quick_features(side_by_side) -> None:
    """Base: the bare network on images made beforehand; the texture features come on top."""
    extractor = Cifar16Extractor()
    pixels = torch.randint(256, (IMAGES, 3, 16, 16), dtype=torch.uint8)
    images = pixels.float() / 127.5 - 1
    side_by_side(lambda: extractor.extract(pixels), lambda: extractor.network(images), ROUNDS)


@pytest.mark.quick
def test_quick_frechet_distance(side_by_side) -> None:
    """Base: eigenvalues of three symmetric matrices of its size, float64."""
    x, y = moments(0), moments(1)

    def bare() -> None:
        for matrix in (x.sigma, y.sigma, x.sigma):
            torch.linalg.eigvalsh(matrix)

    side_by_side(lambda: frechet_distance(generated=x, reference=y), bare, ROUNDS, "unlike")


@pytest.mark.quick
def test_quick_neighbours(side_by_side) -> None:
    """Base: the three tables of products of rows, float32."""
    x, y = features(0), features(1)

    def bare() -> None:
        for a, b in ((x, x), (y, y), (x, y)):
            a @ b.T

    side_by_side(lambda: neighbour_metrics(generated=x, reference=y, k=K), bare, ROUNDS, "unlike")
