"""Which of two numbers is better, and whether that can be told: errors, pairs, ranks."""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from solverbench.benchmark.results import LEVEL, Result
from solverbench.benchmark.store import Influence, Influences

# 0.975 quantiles of Student's t for 1 to 30 degrees of freedom
STUDENT = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


def no_influences(result: Result, metric: str) -> Influence | None:
    """For records whose files are not at hand."""
    return None


@dataclass(frozen=True, eq=False)
class Estimate:
    """A metric of one solver at one NFE, over its training seeds.

    Attributes:
        value: mean over training seeds.
        num: training seeds.
        spread: sample standard deviation over them; None for one.
        se: standard error over images; None where a record has none.
        influence: (M,), what each image adds, mean over training seeds; None unless all have it.
        source: equal where row i of two influences belongs to one seed and one reference.
        recorded: whether these records could hold errors; older ones could not.
    """

    value: float
    num: int
    spread: float | None
    se: float | None
    influence: Influence | None
    source: Hashable
    recorded: bool


@dataclass(frozen=True)
class Gap:
    """How far two estimates lie apart.

    Attributes:
        difference: of the first less the second.
        se: its standard error; None where a part of it is not known.
        paired: whether the error is that of image by image differences.
        level: standard errors beyond which they are told apart.
    """

    difference: float
    se: float | None
    paired: bool
    level: float = LEVEL

    @property
    def significant(self) -> bool:
        """Whether they are more than ``level`` standard errors apart; never without an error."""
        return self.se is not None and abs(self.difference) > self.level * self.se


def estimate(found: Sequence[Result], metric: str, influences: Influences) -> Estimate | None:
    """What the records of all training seeds of a cell say; None where none has a value.

    One set of images seeds serves all training seeds, so errors over images do not shrink with
    their number: without influences ``se`` is the mean of theirs.

    Args:
        found: records of one cell.
        metric: plugin name.
        influences: what lies beside them.
    """
    good = [r for r in found if r.status == "ok" and metric in r.metrics]
    if not good:
        return None
    values = [r.metrics[metric] for r in good]
    errors = [r.errors[metric] for r in good if metric in r.errors]
    rows = [row for r in good if (row := influences(r, metric)) is not None]
    se, influence = statistics.fmean(errors) if len(errors) == len(good) else None, None
    if len(rows) == len(good) and len({len(row) for row in rows}) == 1:
        influence = np.mean([row.astype(np.float64) for row in rows], axis=0)
        se = se if len(good) == 1 else _standard_error(influence)
    first = good[0]
    made = {(r.provenance.weights_sha256, r.provenance.reference_sha256) for r in good}
    return Estimate(
        value=statistics.fmean(values),
        num=len(values),
        spread=statistics.stdev(values) if len(values) > 1 else None,
        se=se,
        influence=influence,
        source=(first.spec.evaluation.first_seed, frozenset(made)),
        recorded=any(r.measurement is not None for r in good),
    )


def gap(a: Estimate, b: Estimate) -> Gap:
    """The difference of two estimates with its error.

    Over images: that of the differences of influences where rows share their seeds, else both
    errors, added in squares. Over training seeds: sd^2 / n of each side that has several. Where
    either side lacks its error over images there is none, but for records that are all older than
    such errors: these are tested by their training seeds alone.

    Source: specification of the metrics, section 5.2.
    """
    images, paired = _over_images(a, b)
    seeds = [(e.spread**2 / e.num, e.num - 1) for e in (a, b) if e.spread is not None]
    difference = a.value - b.value
    if images is None and (a.recorded or b.recorded or not seeds):
        return Gap(difference, None, paired)
    total = (images or 0.0) + sum(part for part, _ in seeds)
    se = math.sqrt(total)
    return Gap(difference, se, paired, _level(images or 0.0, seeds))


def _level(images: float, seeds: Sequence[tuple[float, int]]) -> float:
    """Standard errors of a difference beyond which it counts.

    Welch's quantile holds for the part from training seeds, 1.96 for the part over images; both
    halves of the interval are added in squares. Degrees of freedom of the whole, with infinitely
    many for images, would be too many wherever few seeds happen to agree.

    Args:
        images: squared error over images.
        seeds: of each side sd^2 / n, and n - 1.

    Source: degrees of freedom after Welch (1947); the sum after Banerjee (1960).
    """
    part = sum(square for square, _ in seeds)
    if not part > 0:
        return LEVEL
    own = student(part**2 / sum(square**2 / freedom for square, freedom in seeds))
    return math.sqrt((own**2 * part + LEVEL**2 * images) / (part + images))


def _over_images(a: Estimate, b: Estimate) -> tuple[float | None, bool]:
    """Squared error of the difference over images, None if unknown; whether it is paired."""
    one, other = a.influence, b.influence
    if one is not None and other is not None and a.source == b.source and len(one) == len(other):
        return _standard_error(one - other) ** 2, True
    if a.se is None or b.se is None:
        return None, False
    return a.se**2 + b.se**2, False


def student(freedom: float) -> float:
    """0.975 quantile of Student's t; 1.96 for infinite degrees of freedom.

    Linear in 1 / freedom between whole numbers, and beyond 30: never below the exact quantile.

    Args:
        freedom: degrees of freedom, at least 1.
    """
    grid = [0.0, *(1 / n for n in range(len(STUDENT), 0, -1))]
    return float(np.interp(1 / freedom, grid, [LEVEL, *reversed(STUDENT)]))


def ranks(cells: Mapping[int, Estimate], higher_is_better: bool) -> dict[int, int]:
    """Which rows of a column are marked.

    Args:
        cells: by row.
        higher_is_better: direction.

    Returns:
        1 for the row that is better than every other; where there is none, 2 for the best and
        all that cannot be told from it; else 2 for the second and all that cannot be told from
        it. No marks for a single row, nor where a difference to the best has no error; where only
        one to the second has none, no 2.
    """
    order = sorted(cells, key=lambda row: cells[row].value, reverse=higher_is_better)
    if len(order) < 2:
        return {}
    best, second, *_ = order
    gaps = {row: gap(cells[best], cells[row]) for row in order[1:]}
    if any(one.se is None for one in gaps.values()):
        return {}
    tied = [row for row, one in gaps.items() if not one.significant]
    if tied:
        return dict.fromkeys([best, *tied], 2)
    rest = {row: gap(cells[second], cells[row]) for row in order[2:]}
    if any(one.se is None for one in rest.values()):
        return {best: 1}
    near = [row for row, one in rest.items() if not one.significant]
    return {best: 1} | dict.fromkeys([second, *near], 2)


def _standard_error(influence: Influence) -> float:
    """Standard deviation over sqrt(M) of values (M,), M >= 2."""
    return float(influence.std(ddof=1)) / math.sqrt(len(influence))
