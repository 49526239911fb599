"""Frechet distances between Gaussians fitted to features."""

import torch
from torch import Tensor

from solverbench.benchmark.metrics.base import Metric
from solverbench.images import Features, Moments, Reference, check, moments


def from_moments(generated: Moments, reference: Moments) -> float:
    """Frechet distance |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2).

    The last trace is the sum of the singular values of L1^T L2, with S = L L^T from the
    eigenvectors of S, without eigenvalues that are zero but for rounding.

    Args:
        generated: moments of D features.
        reference: moments of D features.

    Returns:
        The squared distance, at least 0. Biased in the number of images: compare at equal numbers.

    Raises:
        ValueError: where D differs, or a moment is NaN or infinite.

    Source: Heusel et al. (2017), eq. 6. Differs from the authors' code: no matrix root, which is
        biased by 1e-5 and more for covariances of deficient rank.
    """
    if generated.mu.shape != reference.mu.shape:
        raise ValueError(
            f"generated features have {len(generated.mu)} dimensions, reference features "
            f"{len(reference.mu)}; use one extractor for both."
        )
    for value in (generated.mu, generated.sigma, reference.mu, reference.sigma):
        if not value.isfinite().all():
            raise ValueError("moments hold NaN or infinity.")
    root = factor(generated.sigma).T @ factor(reference.sigma)
    traces = generated.sigma.trace() + reference.sigma.trace()
    return _total(generated.mu - reference.mu, traces, root)


def from_rows(generated: Tensor, reference: Tensor) -> float:
    """The same distance from feature rows, without forming covariances.

    Args:
        generated: (M, D).
        reference: (N, D). For min(M, N) <= D this is quicker and more exact than moments.

    Returns:
        The squared distance, at least 0.

    Raises:
        ValueError: where D differs, a set has fewer than two rows, or NaN or infinity occur.
    """
    x, y = check(generated).double(), check(reference).double()
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"generated features have {x.shape[1]} dimensions, reference features {y.shape[1]}; "
            "use one extractor for both."
        )
    shift = x.mean(dim=0) - y.mean(dim=0)
    x = (x - x.mean(dim=0)) / (len(x) - 1) ** 0.5
    y = (y - y.mean(dim=0)) / (len(y) - 1) ** 0.5
    return _total(shift, x.square().sum() + y.square().sum(), x @ y.T)


def factor(sigma: Tensor) -> Tensor:
    """L (D, rank) with L L^T = sigma (D, D); drops eigenvalues below D eps times the largest."""
    values, vectors = torch.linalg.eigh(sigma)
    floor = len(sigma) * torch.finfo(sigma.dtype).eps * values[-1]
    keep = values > floor
    root: Tensor = vectors[:, keep] * values[keep].sqrt()
    return root


def _total(shift: Tensor, traces: Tensor, root: Tensor) -> float:
    value = shift.square().sum() + traces - 2 * torch.linalg.svdvals(root).sum()
    return max(float(value), 0.0)  # equal inputs give about -1e-13


class FD(Metric):
    """Frechet distance of embeddings to the data set."""

    higher_is_better = False
    against = "data"
    digits = 2
    about = "Frechet distance of embeddings to the data set; not FID: another network"

    def label(self, extractor_name: str) -> str:
        """``FD[extractor]``."""
        return f"FD[{extractor_name}]"

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """Squared distance; from moments, which hold more images than the kept rows."""
        return from_moments(moments(generated.embedding), reference.embedding)


class FDTeacher(Metric):
    """Frechet distance of embeddings to the teacher's samples of the same seeds."""

    higher_is_better = False
    against = "teacher"
    digits = 3
    about = "Frechet distance of embeddings to the teacher's samples of the same seeds"

    def label(self, extractor_name: str) -> str:
        """``FD-T[extractor]``."""
        return f"FD-T[{extractor_name}]"

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """Squared distance; from rows where these are too few for a covariance of full rank."""
        x, rows = generated.embedding, reference.features
        if rows is not None and min(len(x), len(rows.embedding)) <= x.shape[1]:
            return from_rows(x, rows.embedding)
        return from_moments(moments(x), reference.embedding)


class FDTexture(Metric):
    """Frechet distance of early activations, blind to what is shown, to the data set."""

    higher_is_better = False
    against = "data"
    digits = 3
    about = "Frechet distance of channel means and deviations of two early stages to the data set"

    def label(self, extractor_name: str) -> str:
        """``FD-texture[extractor]``."""
        return f"FD-texture[{extractor_name}]"

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """Squared distance."""
        return from_moments(moments(generated.texture), reference.texture)
