"""Frechet distances between Gaussians fitted to features, with their errors."""

import math
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from solverbench.benchmark.metrics.base import (
    Difference,
    Measured,
    Metric,
    Rows,
    as_rows,
    paired_difference,
    same_dimensions,
    standard_error,
)
from solverbench.images import (
    BLOCK,
    INCEPTION_2015,
    Features,
    Moments,
    Reference,
    Statistics,
    check,
    moments,
)

Side = Rows | Moments | Statistics
EXACT = 1e-9  # of the traces: what the quick path may lose at most
FIXED = "delta method, reference fixed"


def frechet_distance(*, generated: Side, reference: Side) -> Measured:
    """Frechet distance |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), with its error.

    Three algorithms give the last trace; ``facts["algorithm"]`` names the one that did.
    A: singular values of the product of centred rows, where one set has no more rows than
    dimensions; no covariance is formed. B: singular values of L1^T L2 with S = L L^T, for singular
    covariances. C: roots of the eigenvalues of L2^T S1 L2, where both covariances have full rank
    and rounding cannot be seen.

    Args:
        generated: rows (M, D), or their statistics; only rows give a standard error.
        reference: rows (N, D), or statistics; held fixed by the error.

    Returns:
        The squared distance, at least 0. Biased in M: compare at equal M. The error is that of the
        delta method, with the influence of each row; it needs M > D.

    Raises:
        ValueError: where D differs, a set has fewer than two rows, or NaN or infinity occur.

    Source: Heusel et al. (2017), eq. 6; specification of the metrics, sections 4 and 5.
    """
    return distance(Gaussian(generated), Gaussian(reference))


def paired_frechet(*, generated_a: Rows, generated_b: Rows, reference: Side) -> Difference:
    """Difference of the Frechet distances of two methods that sampled from the same seeds.

    Args:
        generated_a: (M, D).
        generated_b: (M, D); row i belongs to the same seed as row i of ``generated_a``.
        reference: rows (N, D), or statistics.

    Returns:
        Distance of a less that of b, with its own standard error.

    Raises:
        ValueError: where numbers of rows or dimensions differ, or NaN or infinity occur.
    """
    target, a, b = Gaussian(reference), Gaussian(generated_a), Gaussian(generated_b)
    if a.num != b.num:
        raise ValueError(
            f"row i of both sides must share a seed; got {a.num} and {b.num} rows. Sample both "
            "from one list of seeds."
        )
    return paired_difference(distance(a, target), distance(b, target))


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
        return not bool(values[0] > _floor(values))

    @cached_property
    def factor(self) -> Tensor:
        """L (D, rank) with L L^T = sigma."""
        return factor(self.moments.sigma)

    @cached_property
    def triangle(self) -> Tensor:
        """L (D, D), cheaper than ``factor``, for a covariance that is not singular."""
        lower, failed = torch.linalg.cholesky_ex(self.moments.sigma)
        return self.factor if failed else lower


def distance(x: Gaussian, y: Gaussian) -> Measured:
    """What ``frechet_distance`` returns, of sets whose factors may serve again.

    Args:
        x: generated.
        y: reference.

    Raises:
        ValueError: where D differs.
    """
    value, algorithm = squared_distance(x, y)
    u, v = without_constants(x, y)
    influence = _influence(u, v) if _without_error(u) is None else None
    told = replace(_described(u, v, influence, FIXED), dim=x.dim)
    return replace(told, value=value, facts={"algorithm": algorithm})


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


def _described(x: Gaussian, y: Gaussian, influence: Tensor | None, method: str) -> Measured:
    """All but the value."""
    reason = _without_error(x)
    flags = ("rank_deficient",) if x.singular or y.singular else ()
    return Measured(
        value=math.nan,
        se=None if influence is None else standard_error(influence),
        se_method="" if influence is None else method,
        num_generated=x.num,
        num_reference=y.num,
        dim=x.dim,
        flags=flags if reason is None else (*flags, reason),
        influence=influence,
    )


def _without_error(x: Gaussian) -> str | None:
    """The flag that says why there is no standard error; None where there is one."""
    if x.rows is None:
        return "no_se_statistics"
    if x.num <= x.dim:
        return "no_se_few_rows"
    return "no_se_cut" if x.singular else None


def squared_distance(x: Gaussian, y: Gaussian) -> tuple[float, str]:
    """The distance and the letter of the algorithm that gave it.

    Args:
        x: generated.
        y: reference.

    Raises:
        ValueError: where D differs.
    """
    same_dimensions(x.dim, y.dim)
    if x.rows is not None and y.rows is not None and min(x.num, y.num) <= x.dim:
        return from_rows(x.rows, y.rows), "A"
    if not x.singular and not y.singular:
        values = torch.linalg.eigvalsh(_product(x, y))
        traces = x.moments.sigma.trace() + y.moments.sigma.trace()
        if _exact(values, traces):
            shift = (x.moments.mu - y.moments.mu).square().sum()
            return max(float(shift + traces - 2 * values.sqrt().sum()), 0.0), "C"
    return _from_factors(x, y), "B"


def _product(x: Gaussian, y: Gaussian) -> Tensor:
    """L^T S1 L, symmetric, with S2 = L L^T."""
    root = y.factor if y.singular else y.triangle
    product = root.T @ x.moments.sigma @ root
    return (product + product.T) / 2


def _exact(values: Tensor, traces: Tensor) -> bool:
    """Whether roots of eigenvalues that are off by eps times the largest can be trusted."""
    if not values[0] > 0:
        return False
    error = torch.finfo(values.dtype).eps * values[-1] * values.rsqrt().sum()
    return bool(error <= EXACT * traces)


def _influence(x: Gaussian, y: Gaussian) -> Tensor:
    """What each generated row adds to the distance, (M,), float64.

    psi_i = 2 (m1 - m2).c_i + c_i^T (I - T) c_i with c_i = x_i - m1 and the optimal transport
    T = L (L^T S1 L)^(-1/2) L^T, S2 = L L^T.

    Source: specification of the metrics, section 5.1.
    """
    assert x.rows is not None
    root = y.factor if y.singular else y.triangle
    values, vectors = torch.linalg.eigh(_product(x, y))
    keep = values > _floor(values)
    root = (root @ vectors[:, keep]) * values[keep].pow(-0.25)  # T = root root^T
    shift, parts = x.moments.mu - y.moments.mu, []
    for part in torch.split(x.rows, BLOCK):
        centred = part.double() - x.moments.mu
        bent = centred.square().sum(dim=1) - (centred @ root).square().sum(dim=1)
        parts.append(2 * centred @ shift + bent)
    return torch.cat(parts)


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
    same_dimensions(len(generated.mu), len(reference.mu))
    return _from_factors(Gaussian(generated), Gaussian(reference))


def _from_factors(x: Gaussian, y: Gaussian) -> float:
    traces = x.moments.sigma.trace() + y.moments.sigma.trace()
    return _total(x.moments.mu - y.moments.mu, traces, x.factor.T @ y.factor)


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
    same_dimensions(x.shape[1], y.shape[1])
    shift = x.mean(dim=0) - y.mean(dim=0)
    x = (x - x.mean(dim=0)) / (len(x) - 1) ** 0.5
    y = (y - y.mean(dim=0)) / (len(y) - 1) ** 0.5
    return _total(shift, x.square().sum() + y.square().sum(), x @ y.T)


def factor(sigma: Tensor) -> Tensor:
    """L (D, rank) with L L^T = sigma (D, D); drops eigenvalues below D eps times the largest."""
    values, vectors = torch.linalg.eigh(sigma)
    keep = values > _floor(values)
    root: Tensor = vectors[:, keep] * values[keep].sqrt()
    return root


def _floor(values: Tensor) -> Tensor:
    """Below this an eigenvalue, of some in ascending order, is zero but for rounding."""
    return len(values) * torch.finfo(values.dtype).eps * values[-1].clamp_min(0)


def _total(shift: Tensor, traces: Tensor, root: Tensor) -> float:
    value = shift.square().sum() + traces - 2 * torch.linalg.svdvals(root).sum()
    return max(float(value), 0.0)  # equal inputs give about -1e-13


class FD(Metric):
    """Frechet distance of embeddings to the data set."""

    higher_is_better = False
    against = "data"
    digits = 2
    reads_images = False
    about = "Frechet distance of embeddings to the data set; FID only of the 2015 Inception"

    def label(self, extractor_name: str) -> str:
        """``FD[extractor]``; ``FID`` for the 2015 Inception, and for no other network."""
        return "FID" if extractor_name in INCEPTION_2015 else f"FD[{extractor_name}]"

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """Squared distance; from moments, which hold more images than the kept rows."""
        return from_moments(moments(generated.embedding), reference.embedding)

    def measure(self, *, generated: Features, reference: Reference) -> Measured:
        """With the error of the delta method, the data set held fixed."""
        value = self.compute(generated=generated, reference=reference)
        return _with_error(value, generated.embedding, reference.embedding)


class FDTeacher(Metric):
    """Frechet distance of embeddings to the teacher's samples of the same seeds."""

    higher_is_better = False
    against = "teacher"
    digits = 3
    reads_images = False
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

    def measure(self, *, generated: Features, reference: Reference) -> Measured:
        """With the error of the delta method, the teacher's rows drawn by the same seeds.

        Held fixed, they would make the error far too wide: both sides move together.
        """
        value, rows = self.compute(generated=generated, reference=reference), reference.features
        if rows is None or len(rows.embedding) != len(generated.embedding):
            return _with_error(value, generated.embedding, reference.embedding)
        x, y = Gaussian(generated.embedding), Gaussian(rows.embedding)
        pair = None
        if _without_error(x) is None and _without_error(y) is None:
            pair = _influence(x, y) + _influence(y, x)
        found = _described(x, y, pair, "delta method, rows of both sides by seed")
        flags = (
            found.flags if pair is not None or _without_error(x) else (*found.flags, "no_se_cut")
        )
        return replace(found, value=value, flags=flags)


class FDTexture(Metric):
    """Frechet distance of early activations, blind to what is shown, to the data set."""

    higher_is_better = False
    against = "data"
    digits = 3
    reads_images = False
    about = "Frechet distance of channel means and deviations of two early stages to the data set"

    def label(self, extractor_name: str) -> str:
        """``FD-texture[extractor]``."""
        return f"FD-texture[{extractor_name}]"

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """Squared distance.

        Raises:
            ValueError: where the extractor keeps no textures, or they cannot be compared.
        """
        if not generated.texture.shape[1]:
            raise ValueError("fd-texture needs textures, and this extractor keeps none.")
        return from_moments(moments(generated.texture), reference.texture)

    def measure(self, *, generated: Features, reference: Reference) -> Measured:
        """With the error of the delta method, the data set held fixed."""
        value = self.compute(generated=generated, reference=reference)
        return _with_error(value, generated.texture, reference.texture)


def _with_error(value: float, rows: Tensor, reference: Moments) -> Measured:
    """A value with what the delta method says of it."""
    x, y = Gaussian(rows), Gaussian(reference)
    influence = _influence(x, y) if _without_error(x) is None else None
    return replace(_described(x, y, influence, FIXED), value=value)
