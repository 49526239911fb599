"""Precision, recall, density and coverage by nearest neighbours, counted exactly."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from solverbench.benchmark.metrics.balls import hits, mutual_hits
from solverbench.benchmark.metrics.base import (
    Fact,
    Measured,
    Metric,
    Rows,
    same_dimensions,
    standard_error,
)
from solverbench.benchmark.metrics.incidence import (
    Incidence,
    coverage_influence,
    incidence,
    recall_influence,
)
from solverbench.benchmark.results import OVER_ROWS as OVER_ROWS
from solverbench.images import Features, Reference

K = 5
MAX_MEMORY = 2**30
Convention = Literal["kynkaanniemi", "prdc"]
STRICT: Mapping[str, bool] = {"kynkaanniemi": False, "prdc": True}
NO_ERROR = "no_se"
JACKKNIFE = "delete-one jackknife, reference fixed; rather too wide"
UNEQUAL = "unequal_numbers"
LOOKED_AT = 2**18  # numbers searched for NaN at once


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Shares of either set that lie near the other.

    There is no standard error: balls share points, so that of a proportion would be too small.

    Attributes:
        precision: share of the generated rows, ``n_precision`` / M.
        recall: share of the reference rows, ``n_recall`` / N.
        n_precision: generated rows inside some reference ball.
        n_recall: reference rows inside some generated ball.
        k: neighbours that a ball reaches to.
        convention: ``prdc``: inside is nearer than the radius; ``kynkaanniemi``: or as near.
    """

    precision: Measured
    recall: Measured
    n_precision: int
    n_recall: int
    k: int
    convention: Convention


@dataclass(frozen=True, kw_only=True)
class DensityCoverage:
    """How densely, and how completely, generated rows fill the reference's balls.

    Attributes:
        density: ``sum_density`` / (k M); 1 is expected of equal distributions, more is possible.
        coverage: ``n_coverage`` / N; always shown with its ceiling.
        ceiling: coverage expected of equal distributions, see ``coverage_ceiling``.
        sum_density: pairs of a reference ball and a generated row inside it.
        n_coverage: reference balls that hold some generated row.
        k: neighbours that a ball reaches to.
        convention: ``prdc``: inside is nearer than the radius; ``kynkaanniemi``: or as near.
    """

    density: Measured
    coverage: Measured
    ceiling: float
    sum_density: int
    n_coverage: int
    k: int
    convention: Convention


def precision_recall(
    *,
    generated: Rows,
    reference: Rows,
    k: int = 3,
    convention: Convention = "kynkaanniemi",
    max_memory: int = MAX_MEMORY,
) -> PrecisionRecall:
    """Improved precision and recall.

    Args:
        generated: (M, D), M > k; on CUDA, the work is done there, with the same counts.
        reference: (N, D), N > k.
        k: neighbours; 3 in papers on GANs and by ADM, 5 by prdc.
        convention: ``kynkaanniemi`` or ``prdc``: whether a ball's surface belongs to it. They
            differ on ties only, which repeated rows bring about.
        max_memory: bytes beside the features; changes no count.

    Raises:
        ValueError: where D differs, NaN or infinity occur, a set has no more than k rows, or
            max_memory is too little.

    Source: Kynkaanniemi et al. (2019), eq. 1 and 2.
    """
    return neighbour_metrics(
        generated=generated,
        reference=reference,
        k=k,
        convention=convention,
        max_memory=max_memory,
    )[0]


def density_coverage(
    *,
    generated: Rows,
    reference: Rows,
    k: int = K,
    convention: Convention = "prdc",
    max_memory: int = MAX_MEMORY,
) -> DensityCoverage:
    """Density and coverage.

    Args:
        generated: (M, D), M > k; on CUDA, the work is done there, with the same counts.
        reference: (N, D), N > k; use N = M, for the ceiling of coverage moves with N / M.
        k: neighbours.
        convention: ``prdc`` or ``kynkaanniemi``, as in ``precision_recall``.
        max_memory: bytes beside the features; changes no count.

    Raises:
        ValueError: as ``precision_recall``.

    Source: Naeem et al. (2020), eq. 3 and 5.
    """
    x, y = _sets(generated, reference, k, convention)
    found = hits(x, y, k, strict=STRICT[convention], max_memory=max_memory)
    return _density_coverage(x, y, k, convention, (found.pairs, found.balls))


def neighbour_metrics(
    *,
    generated: Rows,
    reference: Rows,
    k: int = K,
    convention: Convention = "prdc",
    max_memory: int = MAX_MEMORY,
) -> tuple[PrecisionRecall, DensityCoverage]:
    """All four with one k, in the time of precision and recall alone.

    Arguments and errors as in ``precision_recall``.
    """
    x, y = _sets(generated, reference, k, convention)
    there, back = mutual_hits(x, y, k, strict=STRICT[convention], max_memory=max_memory)
    shares = PrecisionRecall(
        precision=_measured(there.points / len(x), x, y, {"k": k, "convention": convention}),
        recall=_measured(back.points / len(y), x, y, {"k": k, "convention": convention}),
        n_precision=there.points,
        n_recall=back.points,
        k=k,
        convention=convention,
    )
    return shares, _density_coverage(x, y, k, convention, (there.pairs, there.balls))


def coverage_ceiling(num_generated: int, num_reference: int, k: int) -> float:
    """Expected coverage of two independent samples of one distribution.

    1 - prod_{i<k} (N - 1 - i) / (N + M - 1 - i): of the other N + M - 1 rows, none of the k
    nearest is a generated one. About 1 - 2^-k for N = M.

    Args:
        num_generated: M.
        num_reference: N > k.
        k: neighbours.
    """
    n, others = num_reference - 1, num_reference + num_generated - 1
    return 1 - math.prod((n - i) / (others - i) for i in range(k))


def _density_coverage(
    x: Tensor, y: Tensor, k: int, convention: Convention, counts: tuple[int, int]
) -> DensityCoverage:
    facts: dict[str, Fact] = {"k": k, "convention": convention}
    ceiling = coverage_ceiling(len(x), len(y), k)
    return DensityCoverage(
        density=_measured(counts[0] / (k * len(x)), x, y, facts),
        coverage=_measured(counts[1] / len(y), x, y, facts | {"ceiling": ceiling}),
        ceiling=ceiling,
        sum_density=counts[0],
        n_coverage=counts[1],
        k=k,
        convention=convention,
    )


def _measured(value: float, x: Tensor, y: Tensor, facts: Mapping[str, Fact]) -> Measured:
    return Measured(
        value=value,
        num_generated=len(x),
        num_reference=len(y),
        dim=x.shape[1],
        flags=(NO_ERROR,) if len(x) == len(y) else (NO_ERROR, UNEQUAL),
        facts=facts,
    )


def _sets(generated: Rows, reference: Rows, k: int, convention: str) -> tuple[Tensor, Tensor]:
    """Both sides, checked, on one device: the one that holds the generated rows."""
    if convention not in STRICT:
        raise ValueError(f"unknown convention '{convention}'; use one of {', '.join(STRICT)}.")
    x, y = _rows("generated", generated), _rows("reference", reference)
    same_dimensions(x.shape[1], y.shape[1])
    if k < 1:
        raise ValueError(f"k={k} is no number of nearest neighbours; use 1 or more.")
    for side, rows in (("generated", x), ("reference", y)):
        if len(rows) <= k:
            raise ValueError(
                f"k={k} nearest neighbours need more than {k} rows; got {len(rows)} {side} rows."
            )
    return x, y.to(x.device)


def _rows(side: str, features: Rows) -> Tensor:
    if not isinstance(features, Tensor):
        features = torch.from_numpy(np.require(features, requirements="W"))
    rows = features.detach() if features.is_floating_point() else features.double()
    if rows.ndim != 2 or not rows.numel():
        raise ValueError(f"{side} features must be (rows, dimensions); got {tuple(rows.shape)}.")
    parts = torch.split(rows, max(1, LOOKED_AT // rows.shape[1]))
    bad = sum(int((~part.isfinite().all(dim=1)).sum()) for part in parts)
    if bad:
        raise ValueError(f"{bad} of {len(rows)} {side} feature rows hold NaN or infinity.")
    return rows


def covered(points: Tensor, centres: Tensor, k: int = K, max_memory: int = MAX_MEMORY) -> int:
    """How many points (M, D) lie strictly inside a ball around one of the centres (N, D).

    Raises:
        ValueError: as ``precision_recall``.
    """
    x, y = _sets(points, centres, k, "prdc")
    return hits(x, y, k, strict=True, max_memory=max_memory).points


def equal_sets(generated: Features, reference: Reference) -> tuple[Tensor, Tensor]:
    """Embeddings of both sides, the larger cut to as many first rows as the smaller has.

    Raises:
        ValueError: where the reference carries no rows.
    """
    if reference.features is None:
        raise ValueError("this reference holds moments only; neighbour metrics need rows.")
    x, y = generated.embedding, reference.features.embedding
    num = min(len(x), len(y))
    return x[:num], y[:num]


def measured_by_row(
    found: tuple[float, Tensor | None, str], x: Tensor, y: Tensor, facts: dict[str, Fact]
) -> Measured:
    """Value, influence (M,) and method of x (M, D) against y (N, D), with the error of the rows."""
    value, influence, method = found
    unequal = () if len(x) == len(y) else (UNEQUAL,)
    return Measured(
        value=value,
        se=None if influence is None else standard_error(influence),
        se_method="" if influence is None else method,
        num_generated=len(x),
        num_reference=len(y),
        dim=x.shape[1],
        flags=unequal if influence is not None else (NO_ERROR, *unequal),
        facts=facts,
        influence=influence,
    )


class NeighbourMetric(Metric):
    """What the four have in common.

    If one set is larger, only its first rows count, as many as the other has.

    Attributes:
        word: the metric's name in tables.
    """

    higher_is_better = True
    against = "data"
    digits = 3
    reads_images = False
    word: str

    def label(self, extractor_name: str) -> str:
        """``precision[cifar16]`` and the like."""
        return f"{self.word}[{extractor_name}]"

    def measure(self, *, generated: Features, reference: Reference) -> Measured:
        """With the error of the rows that count; no error for k + 1 rows."""
        x, y = _sets(*equal_sets(generated, reference), K, "prdc")
        facts: dict[str, Fact] = {"k": K, "convention": "prdc"}
        facts |= self.more(len(x), len(y))
        return measured_by_row(self.by_row(x.cpu(), y.cpu()), x, y, facts)

    @abstractmethod
    def by_row(self, x: Tensor, y: Tensor) -> tuple[float, Tensor | None, str]:
        """Value, influence (M,) of each generated row, and how that was found.

        Args:
            x: generated (M, D).
            y: reference (M, D).
        """

    def more(self, num_generated: int, num_reference: int) -> dict[str, Fact]:
        """Conventions beside k and ties."""
        return {}


def _within(points: Tensor, centres: Tensor) -> Incidence:
    return incidence(points, centres, K, max_memory=MAX_MEMORY)


class Precision(NeighbourMetric):
    """Share of generated images near some image of the data set."""

    word = "precision"
    about = "share of generated embeddings strictly inside a data ball, k=5, equal numbers"

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """Between 0 and 1."""
        x, y = equal_sets(generated, reference)
        return covered(x, y) / len(x)

    def by_row(self, x: Tensor, y: Tensor) -> tuple[float, Tensor | None, str]:
        """A row is inside or not."""
        inside = _within(x, y).around > 0
        return int(inside.sum()) / len(x), inside.double(), OVER_ROWS


class Recall(NeighbourMetric):
    """Share of the data set's images near some generated image."""

    word = "recall"
    about = "share of data embeddings strictly inside a ball of generated ones, k=5, equal numbers"

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """Between 0 and 1."""
        x, y = equal_sets(generated, reference)
        return covered(y, x) / len(y)

    def by_row(self, x: Tensor, y: Tensor) -> tuple[float, Tensor | None, str]:
        """Deleting a row takes its ball, and other balls grow."""
        found, influence = _within(y, x), None
        if len(x) > K + 1:
            influence = recall_influence(found, y, x, K, max_memory=MAX_MEMORY)
        return int((found.around > 0).sum()) / len(y), influence, JACKKNIFE


class Density(NeighbourMetric):
    """How many balls of the data set an image lies in, against k: 1 for equal distributions."""

    word = "density"
    about = "data balls that a generated embedding lies in, over k=5, mean, equal numbers"

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """At least 0; 1 is expected of equal distributions."""
        x, y = equal_sets(generated, reference)
        return density_coverage(generated=x, reference=y).density.value

    def by_row(self, x: Tensor, y: Tensor) -> tuple[float, Tensor | None, str]:
        """A row lies in so many balls."""
        around = _within(x, y).around
        return int(around.sum()) / (K * len(x)), around.double() / K, OVER_ROWS


class Coverage(NeighbourMetric):
    """Share of the data set's balls that hold a generated image."""

    word = "coverage"
    about = "share of data balls holding a generated embedding, k=5, equal numbers; ceiling 0.969"

    def compute(self, *, generated: Features, reference: Reference) -> float:
        """Between 0 and 1; 1 - 2^-5 is expected of many images of equal distributions."""
        x, y = equal_sets(generated, reference)
        return density_coverage(generated=x, reference=y).coverage.value

    def by_row(self, x: Tensor, y: Tensor) -> tuple[float, Tensor | None, str]:
        """Deleting a row leaves the balls empty that hold no other."""
        found = _within(x, y)
        return int((found.held > 0).sum()) / len(y), coverage_influence(found), JACKKNIFE

    def more(self, num_generated: int, num_reference: int) -> dict[str, Fact]:
        """The ceiling, shown beside the value."""
        return {"ceiling": coverage_ceiling(num_generated, num_reference, K)}
