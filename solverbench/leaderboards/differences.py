"""Which of two numbers is better, and whether that can be told: errors, pairs, ranks."""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from solverbench.benchmark.results import LEVEL, Result
from solverbench.benchmark.store import Influence, Influences


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
        se: its standard error; None where nothing is known.
        paired: whether the error is that of image by image differences.
        testable: whether a difference without an error may count: that of older records.
    """

    difference: float
    se: float | None
    paired: bool
    testable: bool = True

    @property
    def significant(self) -> bool:
        """Whether they are more than 1.96 standard errors apart; by value, without an error."""
        if self.se is None:
            return self.testable and self.difference != 0
        return abs(self.difference) > LEVEL * self.se


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
    errors, added in squares. Over training seeds: sd^2 / n of each side that has several.

    Source: specification of the metrics, section 5.2.
    """
    parts = [e.spread**2 / e.num for e in (a, b) if e.spread is not None]
    paired = False
    if a.influence is not None and b.influence is not None:
        paired = a.source == b.source and len(a.influence) == len(b.influence)
    if paired:
        assert a.influence is not None
        assert b.influence is not None
        parts.append(_standard_error(a.influence - b.influence) ** 2)
    else:
        parts += [e.se**2 for e in (a, b) if e.se is not None]
    se = math.sqrt(sum(parts)) if parts else None
    return Gap(a.value - b.value, se, paired, testable=not (a.recorded or b.recorded))


def ranks(cells: Mapping[int, Estimate], higher_is_better: bool) -> dict[int, int]:
    """Which rows of a column are marked.

    Args:
        cells: by row.
        higher_is_better: direction.

    Returns:
        1 for the row that is better than every other; where there is none, 2 for the best and
        all that cannot be told from it; else 2 for the second and all that cannot be told from
        it. No marks for a single row, or where a difference cannot be tested.
    """
    order = sorted(cells, key=lambda row: cells[row].value, reverse=higher_is_better)
    if len(order) < 2:
        return {}
    best, second, *_ = order
    gaps = {row: gap(cells[best], cells[row]) for row in order[1:]}
    if any(one.se is None and not one.testable for one in gaps.values()):
        return {}
    tied = [row for row, one in gaps.items() if not one.significant]
    if tied:
        return dict.fromkeys([best, *tied], 2)
    rest = [row for row in order[2:] if not gap(cells[second], cells[row]).significant]
    return {best: 1} | dict.fromkeys([second, *rest], 2)


def _standard_error(influence: Influence) -> float:
    """Standard deviation over sqrt(M) of values (M,), M >= 2."""
    return float(influence.std(ddof=1)) / math.sqrt(len(influence))
