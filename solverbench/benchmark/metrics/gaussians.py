"""Gaussians fitted to features, with the factors of their covariances."""

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from solverbench.benchmark.metrics.base import Rows, as_rows
from solverbench.images import Moments, Statistics, moments

Side = Rows | Moments | Statistics


class Gaussian:
    """One set of features, and what follows from it, each computed when first asked for.

    Args:
        given: rows (M, D), or statistics of them.

    Raises:
        ValueError: for fewer than two rows, NaN or infinity.
    """

    def __init__(self, given: Side) -> None:
        self.rows: Tensor | None = None
        if isinstance(given, Statistics):
            given = given.moments()
        if isinstance(given, Moments):
            if not (given.mu.isfinite().all() and given.sigma.isfinite().all()):
                raise ValueError("moments hold NaN or infinity.")
            self.moments = given  # takes the place of the property
            self.num, self.dim = given.num, len(given.mu)
        else:
            self.rows = as_rows(given)
            self.num, self.dim = self.rows.shape

    def within(self, keep: Tensor) -> "Gaussian":
        """The same set with some of its features only, ``keep`` (D,), bool."""
        if self.rows is not None:
            return Gaussian(self.rows[:, keep])
        own = self.moments
        return Gaussian(replace(own, mu=own.mu[keep], sigma=own.sigma[keep][:, keep]))

    def turned(self, basis: Tensor) -> "Gaussian":
        """The same set along orthonormal directions (D, rank), float64."""
        if self.rows is not None:
            return Gaussian(self.rows.double() @ basis)
        own = self.moments
        return Gaussian(replace(own, mu=own.mu @ basis, sigma=basis.T @ own.sigma @ basis))

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance."""
        assert self.rows is not None
        return moments(self.rows)

    @cached_property
    def singular(self) -> bool:
        """Whether an eigenvalue of the covariance is zero but for rounding."""
        if self.rows is not None and self.num <= self.dim:
            return True
        values = torch.linalg.eigvalsh(self.moments.sigma)
        return not bool(values[0] > floor(values))

    @cached_property
    def factor(self) -> Tensor:
        """L (D, rank) with L L^T = sigma."""
        return factor(self.moments.sigma)

    @cached_property
    def triangle(self) -> Tensor:
        """L (D, D), cheaper than ``factor``, for a covariance that is not singular."""
        lower, failed = torch.linalg.cholesky_ex(self.moments.sigma)
        return self.factor if failed else lower


def without_constants(x: Gaussian, y: Gaussian) -> tuple[Gaussian, Gaussian]:
    """Both sets without the features that vary in neither, such as units that are never active.

    These add their squared shift to the distance and nothing to its error; left in, they would
    make both covariances singular.
    """
    if x.num <= x.dim and x.rows is not None:
        return x, y
    keep = torch.zeros(x.dim, dtype=torch.bool)
    for one in (x, y):
        variances = one.moments.sigma.diagonal()
        keep |= variances > len(variances) * torch.finfo(variances.dtype).eps * variances.max()
    return (x, y) if keep.all() or not keep.any() else (x.within(keep), y.within(keep))


def supported(x: Gaussian, y: Gaussian, *, both: bool) -> tuple[Gaussian, Gaussian, float]:
    """Both sets in the directions in which x varies.

    Args:
        x: rows, more than dimensions.
        y: rows or moments.
        both: whether y has to vary in them too.

    Returns:
        Both sets there, and the larger of the two variances that this leaves out.
    """
    basis = _support(x.moments.sigma)
    if both:
        basis = basis @ _support(basis.T @ y.moments.sigma @ basis)
    sides = x.turned(basis), y.turned(basis)
    pairs = zip((x, y), sides, strict=True)
    left_out = [float(a.moments.sigma.trace() - b.moments.sigma.trace()) for a, b in pairs]
    return *sides, max(left_out)


def _support(sigma: Tensor) -> Tensor:
    """Orthonormal directions (D, rank) in which sigma (D, D) is not zero but for rounding."""
    values, vectors = torch.linalg.eigh(sigma)
    kept: Tensor = vectors[:, values > floor(values)]
    return kept


def factor(sigma: Tensor) -> Tensor:
    """L (D, rank) with L L^T = sigma (D, D); drops eigenvalues below D eps times the largest."""
    values, vectors = torch.linalg.eigh(sigma)
    keep = values > floor(values)
    root: Tensor = vectors[:, keep] * values[keep].sqrt()
    return root


def floor(values: Tensor) -> Tensor:
    """Below this an eigenvalue, of some in ascending order, is zero but for rounding."""
    return len(values) * torch.finfo(values.dtype).eps * values[-1].clamp_min(0)
