"""CMMD: maximum mean discrepancy with a Gaussian kernel on unit vectors."""

import torch
from torch import Tensor

from solverbench.benchmark.metrics.base import Measured, Rows, as_pair

SIGMA = 10.0
BLOCK = 2048  # rows of kernel values held at once


def cmmd(*, generated: Rows, reference: Rows, sigma: float = SIGMA) -> Measured:
    """1000 times the biased squared MMD of rows scaled to unit length.

    Args:
        generated: (M, D); CMMD by name only for embeddings of CLIP ViT-L/14-336.
        reference: (N, D).
        sigma: width of the kernel exp(-|x - y|^2 / (2 sigma^2)).

    Returns:
        At least 0.

    Raises:
        ValueError: where D differs, a set has fewer than two rows, a row is zero, or NaN or
            infinity occur.

    Source: Jayasumana et al. (2024), eq. 4. Differs: sums exp(.) - 1, which loses no digits where
        all kernel values are near 1; the ones cancel.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive; got {sigma}.")
    x, y = (_unit(rows) for rows in as_pair(generated, reference))
    value = _mean(x, x, sigma) + _mean(y, y, sigma) - 2 * _mean(x, y, sigma)
    return Measured(
        value=max(1000 * value, 0.0),
        num_generated=len(x),
        num_reference=len(y),
        dim=x.shape[1],
        flags=("no_se",),
        facts={"sigma": sigma, "scale": 1000},
    )


def _unit(rows: Tensor) -> Tensor:
    rows = rows.double()
    norms: Tensor = rows.norm(dim=1, keepdim=True)
    if not norms.all():
        raise ValueError("a feature row is zero and cannot be scaled to unit length.")
    unit: Tensor = rows / norms
    return unit


def _mean(x: Tensor, y: Tensor, sigma: float) -> float:
    """Mean of the kernel less 1; |x - y|^2 = 2 - 2 x.y for unit vectors."""
    parts = (((part @ y.T - 1) / sigma**2).expm1().sum() for part in torch.split(x, BLOCK))
    return float(sum(parts, torch.zeros((), dtype=torch.float64))) / (len(x) * len(y))
