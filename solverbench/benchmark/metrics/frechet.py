"""Frechet distances between Gaussians fitted to features, with their errors."""

import statistics
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from solverbench.benchmark.metrics.base import (
    Difference,
    Fact,
    Measured,
    Metric,
    Rows,
    paired_difference,
    same_dimensions,
    standard_error,
)
from solverbench.benchmark.metrics.gaussians import (
    Gaussian,
    Side,
    floor,
    supported,
    without_constants,
)
from solverbench.images import (
    BLOCK,
    INCEPTION_2015,
    Features,
    Moments,
    Reference,
    check,
    moments,
)

EXACT = 1e-9  # of the traces: what the quick path may lose at most
LEFT_OUT = 0.1  # of the error: what directions without variance on one side may hold on the other
FIXED = "delta method, reference fixed"
BY_SEED = "delta method, both sides by seed"


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
        delta method, with the influence of each row; it needs M > D, and a reference with next to
        no variance where the rows have none.

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


def distance(x: Gaussian, y: Gaussian) -> Measured:
    """What ``frechet_distance`` returns, of sets whose factors may serve again.

    Args:
        x: generated.
        y: reference.

    Raises:
        ValueError: where D differs.
    """
    value, algorithm = squared_distance(x, y)
    return replace(_with_error(value, x, y), facts={"algorithm": algorithm})


def _with_error(value: float, x: Gaussian, y: Gaussian, by_seed: bool = False) -> Measured:
    """A value with what the delta method says of it.

    Args:
        value: the distance.
        x: generated.
        y: reference; held fixed, unless its rows were drawn by the seeds of those of x.
        by_seed: whether they were.
    """
    u, v = without_constants(x, y)
    influence, reason = _total_influence(u, v, by_seed)
    flags = ("rank_deficient",) if u.singular or v.singular else ()
    return Measured(
        value=value,
        se=None if influence is None else standard_error(influence),
        se_method="" if influence is None else BY_SEED if by_seed else FIXED,
        num_generated=x.num,
        num_reference=y.num,
        dim=x.dim,
        flags=flags if reason is None else (*flags, reason),
        influence=influence,
    )


def _total_influence(x: Gaussian, y: Gaussian, by_seed: bool) -> tuple[Tensor | None, str | None]:
    """Influences (M,) of both sides that move, or the flag that says why there are none.

    Directions in which a side that moves does not vary are left out, such as units that are active
    on an image or two of the other side. What they add to the distance and to its error is about
    the variance left out, so that may be a tenth of the error found.
    """
    moving = (x, y) if by_seed else (x,)
    reason = next((found for one in moving if (found := _without_error(one))), None)
    if reason is not None:
        return None, reason
    left_out = 0.0
    if any(one.singular for one in moving):
        x, y, left_out = supported(x, y, both=by_seed)
    if not x.dim:
        return None, "no_se_cut"
    influence = _influence(x, y)
    if by_seed:
        influence = influence + _influence(y, x)
    cut = left_out > LEFT_OUT * standard_error(influence)
    return (None, "no_se_cut") if cut else (influence, None)


def _without_error(x: Gaussian) -> str | None:
    """Why a side can have no influences; None where it may."""
    if x.rows is None:
        return "no_se_statistics"
    return "no_se_few_rows" if x.num <= x.dim else None


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


def mean_of_halves(rows: Tensor, reference: Gaussian, splits: int = 3, seed: int = 0) -> float:
    """Mean distance of both halves of rows (M, D), split at random several times."""
    rng, found, half = torch.Generator().manual_seed(seed), list[float](), len(rows) // 2
    for _ in range(splits):
        order = torch.randperm(len(rows), generator=rng)
        for part in (order[:half], order[half:]):
            found.append(squared_distance(Gaussian(rows[part]), reference)[0])
    return statistics.fmean(found)


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
    keep = values > floor(values)
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


def _total(shift: Tensor, traces: Tensor, root: Tensor) -> float:
    value = shift.square().sum() + traces - 2 * torch.linalg.svdvals(root).sum()
    return max(float(value), 0.0)  # equal inputs give about -1e-13


class Frechet(Metric):
    """What the three have in common.

    Attributes:
        word: the metric's name in tables.
    """

    higher_is_better = False
    against: ClassVar[Literal["data", "teacher"]] = "data"
    digits = 3
    reads_images = False
    word: ClassVar[str]

    def label(self, extractor_name: str) -> str:
        """``FD-T[extractor]`` and the like."""
        return f"{self.word}[{extractor_name}]"


class FD(Frechet):
    """Frechet distance of embeddings to the data set."""

    word = "FD"
    digits = 2
    about = "Frechet distance of embeddings to the data set; FID only of the 2015 Inception"

    def label(self, extractor_name: str) -> str:
        """``FD[extractor]``; ``FID`` for the 2015 Inception, and for no other network."""
        return "FID" if extractor_name in INCEPTION_2015 else super().label(extractor_name)

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """Squared distance; from moments, which hold more images than the kept rows."""
        return from_moments(moments(generated.embedding), reference.embedding)

    def measure(self, *, generated: Features, reference: Reference) -> Measured:
        """With the error of the delta method, the data set held fixed.

        ``facts["value_inf"]`` is the half-split estimate for infinitely many images, where halves
        have more rows than dimensions.
        """
        value = self.compute(generated=generated, reference=reference)
        x, y = Gaussian(generated.embedding), Gaussian(reference.embedding)
        found, facts = _with_error(value, x, y), dict[str, Fact]()
        if x.num // 2 > x.dim:
            facts["value_inf"] = 2 * value - mean_of_halves(generated.embedding, y)
            facts["value_inf_method"] = "half split"
        return replace(found, facts=facts)


class FDTeacher(Frechet):
    """Frechet distance of embeddings to the teacher's samples of the same seeds."""

    word = "FD-T"
    against = "teacher"
    about = "Frechet distance of embeddings to the teacher's samples of the same seeds"

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
        by_seed = rows is not None and len(rows.embedding) == len(generated.embedding)
        theirs = rows.embedding if rows is not None and by_seed else reference.embedding
        return _with_error(value, Gaussian(generated.embedding), Gaussian(theirs), by_seed)


class FDTexture(Frechet):
    """Frechet distance of early activations, blind to what is shown, to the data set."""

    word = "FD-texture"
    about = "Frechet distance of channel means and deviations of two early stages to the data set"

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
        return _with_error(value, Gaussian(generated.texture), Gaussian(reference.texture))
