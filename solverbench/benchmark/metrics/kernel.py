"""Kernel distances (KID): unbiased maximum mean discrepancy with a cubic kernel."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from solverbench.benchmark.metrics.base import Measured, Metric, Rows, as_pair, rows_of
from solverbench.images import INCEPTION_2015, Features, Reference

BLOCK = 2048  # rows of kernel values held at once


@dataclass(frozen=True, kw_only=True)
class KernelDistance(Measured):
    """A kernel distance over random subsets; ``value`` is the mean of their squared MMD.

    Attributes:
        std: standard deviation over subsets (ddof 0), which others print as the error. It is
            none: subsets share rows.
        se_at_least: std / sqrt(subsets), a lower bound of the error of the mean.
        subsets: how many.
        subset_size: rows a subset.
    """

    std: float
    se_at_least: float
    subsets: int
    subset_size: int

    @property
    def x1000(self) -> float:
        """``value`` in thousandths, the unit of tables."""
        return 1000 * self.value


def kernel_distance(
    *,
    generated: Rows,
    reference: Rows,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> KernelDistance:
    """Mean over random subsets of the unbiased squared MMD with kernel (x.y / D + 1)^3.

    Args:
        generated: (M, D); KID by name only for features of the 2015 Inception network.
        reference: (N, D).
        subsets: how many are drawn.
        subset_size: rows drawn without replacement on each side; at most min(M, N) are.
        seed: of the draws.

    Returns:
        The squared distance; negative values occur, for it is unbiased.

    Raises:
        ValueError: where D differs, a set has fewer than two rows, NaN or infinity occur, or there
            is nothing to draw.

    Source: Binkowski et al. (2018), eq. 4; random numbers in the order of torch-fidelity 0.4.0.
    """
    x, y = (rows.double() for rows in as_pair(generated, reference))
    size = min(subset_size, len(x), len(y))
    if subsets < 1 or size < 2:
        raise ValueError(f"needs at least one subset of two rows; got {subsets} of {subset_size}.")
    rng = np.random.RandomState(seed)  # the generator of published values
    found = []
    for _ in range(subsets):
        rows = rng.choice(len(x), size, replace=False)
        others = rng.choice(len(y), size, replace=False)
        found.append(_squared_mmd(x[torch.from_numpy(rows)], y[torch.from_numpy(others)]))
    with np.errstate(over="ignore", invalid="ignore"):  # Measured says it
        std, mean = float(np.std(found)), float(np.mean(found))
    return KernelDistance(
        value=mean,
        num_generated=len(x),
        num_reference=len(y),
        dim=x.shape[1],
        flags=("no_se_subsets",),
        facts={"subsets": subsets, "subset_size": size, "seed": seed, "std": std},
        std=std,
        se_at_least=std / math.sqrt(subsets),
        subsets=subsets,
        subset_size=size,
    )


def full_kernel_distance(*, generated: Rows, reference: Rows) -> Measured:
    """The same estimator on all rows at once, in bounded memory; time grows with (M + N)^2.

    Args:
        generated: (M, D).
        reference: (N, D).

    Raises:
        ValueError: where D differs, a set has fewer than two rows, or NaN or infinity occur.

    Source: Gretton et al. (2012), eq. 3.
    """
    x, y = (rows.double() for rows in as_pair(generated, reference))
    return Measured(
        value=_squared_mmd(x, y),
        num_generated=len(x),
        num_reference=len(y),
        dim=x.shape[1],
        flags=("no_se",),
    )


class KD(Metric):
    """Kernel distance of embeddings to the data set."""

    higher_is_better = False
    against: ClassVar[Literal["data", "teacher"]] = "data"
    digits = 4
    about = "squared MMD of embeddings to the data set, kernel (x.y / D + 1)^3, mean of 100 subsets"
    reads_images = False

    def label(self, extractor_name: str) -> str:
        """``KD[extractor]``; ``KID`` for the 2015 Inception, and for no other network."""
        return "KID" if extractor_name in INCEPTION_2015 else f"KD[{extractor_name}]"

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """Negative values occur; the reference must carry rows."""
        return self.measure(generated=generated, reference=reference).value

    def measure(self, *, generated: Features, reference: Reference) -> Measured:
        """Without an error; ``facts["std"]`` is the deviation over subsets, which is none."""
        return kernel_distance(generated=generated.embedding, reference=rows_of(reference))


def _squared_mmd(x: Tensor, y: Tensor) -> float:
    m, n = len(x), len(y)
    within = (_sum(x, x) - _diagonal(x)) / (m * (m - 1)) + (_sum(y, y) - _diagonal(y)) / (
        n * (n - 1)
    )
    return within - 2 * _sum(x, y) / (m * n)


def _sum(x: Tensor, y: Tensor) -> float:
    parts = ((part @ y.T / x.shape[1] + 1).pow(3).sum() for part in torch.split(x, BLOCK))
    return float(sum(parts, torch.zeros((), dtype=torch.float64)))


def _diagonal(x: Tensor) -> float:
    return float((x.square().sum(dim=1) / x.shape[1] + 1).pow(3).sum())
