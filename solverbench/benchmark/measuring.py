"""Every metric of two sides, with its error, and the spread over blocks of rows."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from solverbench.benchmark.metrics.base import (
    Fact,
    Measured,
    NotFiniteError,
    as_pair,
)
from solverbench.benchmark.metrics.cmmd import cmmd
from solverbench.benchmark.metrics.frechet import frechet_distance
from solverbench.benchmark.metrics.incidence import (
    coverage_influence,
    incidence,
    recall_influence,
)
from solverbench.benchmark.metrics.kernel import kernel_distance
from solverbench.benchmark.metrics.mind import mind
from solverbench.benchmark.metrics.neighbours import (
    JACKKNIFE,
    OVER_ROWS,
    STRICT,
    coverage_ceiling,
    measured_by_row,
)
from solverbench.benchmark.metrics.repeats import Repeats, half_split, over_seed_blocks
from solverbench.benchmark.sides import Choice, Side
from solverbench.errors import SolverBenchError
from solverbench.images import moments

NEIGHBOURS = ("precision", "recall", "density", "coverage")
DEFAULTS = ("fd", *NEIGHBOURS, "kid", "mind")
METRICS = (*DEFAULTS, "fd-half-split", "cmmd")
FROM_MOMENTS = ("fd",)  # needs no rows on either side
Found = tuple[float, Tensor | None, str]  # value, influence of each row, how it was found


def allowed(x: Side, y: Side, choice: Choice) -> tuple[list[str], dict[str, str]]:
    """Names to measure, and default metrics that the sides do not allow, with the reason.

    Raises:
        SolverBenchError: where one was asked for by name.
    """
    names, absent = choice.metrics or DEFAULTS, dict[str, str]()
    poor = [side.about for side in (x, y) if side.rows is None]
    if poor:
        why = f"needs feature rows, and {poor[0]} holds statistics alone"
        refused = [name for name in names if name not in FROM_MOMENTS]
        if refused and choice.metrics:
            raise SolverBenchError(f"{refused[0]} {why}")
        absent = dict.fromkeys(refused, why)
    return [name for name in names if name not in absent], absent


def measure(names: Sequence[str], x: Side, y: Side, choice: Choice) -> dict[str, Measured]:
    """Values with errors, in the order of the names.

    Args:
        names: of ``METRICS``; all but ``fd`` need rows.
        x: generated.
        y: reference.
        choice: k, ties, memory, and whether numbers may be unequal.

    Raises:
        SolverBenchError: where a metric has no finite value.
        ValueError: for features that cannot be compared.
    """
    found = dict[str, Measured]()
    wanted = [name for name in names if name in NEIGHBOURS]
    if wanted:
        found = neighbours(*(_pair(x, y) if choice.unequal else equal(x, y, choice)), choice)
    for name in names:
        if name not in NEIGHBOURS:
            found[name] = _single(name, x, y)
    return {name: found[name] for name in names}


def over_blocks(names: Sequence[str], x: Side, y: Side, choice: Choice) -> dict[str, Repeats]:
    """The same on disjoint blocks of consecutive generated rows.

    Raises:
        SolverBenchError: as ``measure``, and where the generated side has no rows.
        ValueError: likewise, or for too few blocks or rows.
    """
    if x.rows is None:
        raise SolverBenchError(f"--blocks needs feature rows, and {x.about} holds statistics alone")
    repeats = {}
    for name in names:

        def one(*, generated: Tensor, reference: Tensor, name: str = name) -> Measured:
            part = replace(x, rows=generated, moments=moments(generated))
            return measure([name], part, y, choice)[name]

        repeats[name] = over_seed_blocks(
            one,  # type: ignore[arg-type]  # the reference is a side, which holds more than rows
            generated=x.rows,
            reference=x.rows,
            num_blocks=choice.blocks,
        )
    return repeats


def equal(x: Side, y: Side, choice: Choice) -> tuple[Tensor, Tensor]:
    """As many rows of both sides: the first generated ones, which are in the order of their seeds.

    Of a larger reference the first too where an extractor brought it, as records do; files and
    folders are often sorted by class, so of theirs a random subset is taken.
    """
    ours, theirs = _pair(x, y)
    num = min(len(ours), len(theirs))
    if len(theirs) > num and not y.own:
        rng = torch.Generator().manual_seed(choice.seed)
        theirs = theirs[torch.randperm(len(theirs), generator=rng)[:num].sort().values]
    return ours[:num], theirs[:num]


def neighbours(x: Tensor, y: Tensor, choice: Choice) -> dict[str, Measured]:
    """All four metrics of neighbours with the errors that records give.

    Args:
        x: generated (M, D), M > k.
        y: reference (N, D), N > k.
        choice: k, ties and memory.

    Raises:
        ValueError: where a set has no more than k rows, or there is too little memory.
    """
    k, memory, (m, n) = choice.k, choice.max_memory, (len(x), len(y))
    for side, rows in (("generated", m), ("reference", n)):
        if rows <= k:
            raise ValueError(
                f"k={k} nearest neighbours need more than {k} rows; got {rows} {side} rows."
            )
    strict = STRICT[choice.convention]
    there = incidence(x, y, k, max_memory=memory, strict=strict)
    back = incidence(y, x, k, max_memory=memory, strict=strict)
    inside, lost = there.around > 0, None
    if m > k + 1:
        lost = recall_influence(back, y, x, k, max_memory=memory)
    found: dict[str, Found] = {
        "precision": (int(inside.sum()) / m, inside.double(), OVER_ROWS),
        "recall": (int((back.around > 0).sum()) / n, lost, JACKKNIFE),
        "density": (int(there.around.sum()) / (k * m), there.around.double() / k, OVER_ROWS),
        "coverage": (int((there.held > 0).sum()) / n, coverage_influence(there), JACKKNIFE),
    }
    return {name: _measured(name, parts, x, y, choice) for name, parts in found.items()}


def _measured(name: str, found: Found, x: Tensor, y: Tensor, choice: Choice) -> Measured:
    facts: dict[str, Fact] = {"k": choice.k, "convention": choice.convention}
    if name == "coverage":
        facts["ceiling"] = coverage_ceiling(len(x), len(y), choice.k)
    return measured_by_row(found, x, y, facts)


def _pair(x: Side, y: Side) -> tuple[Tensor, Tensor]:
    assert x.rows is not None
    assert y.rows is not None
    return as_pair(x.rows, y.rows)


def _single(name: str, x: Side, y: Side) -> Measured:
    """A metric that is a function of its own."""
    try:
        return _functions(x, y)[name]()
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise SolverBenchError(
            f"{name} has no finite value: features are too large or too small; scale both sides, "
            "or leave it out with --metrics"
        ) from error
    except NotFiniteError as error:
        raise SolverBenchError(f"{name}: {error}, or leave it out with --metrics") from error


def _functions(x: Side, y: Side) -> dict[str, Callable[[], Measured]]:
    generated = x.moments if x.rows is None else x.rows
    reference = y.rows if y.moments is None else y.moments
    assert generated is not None
    assert reference is not None
    found: dict[str, Callable[[], Measured]] = {
        "fd": lambda: frechet_distance(generated=generated, reference=reference)
    }
    if x.rows is None or y.rows is None:
        return found
    ours, theirs = x.rows, y.rows
    return found | {
        "fd-half-split": lambda: _half_split(ours, y),
        "kid": lambda: kernel_distance(generated=ours, reference=theirs),
        "mind": lambda: mind(generated=ours, reference=theirs),
        "cmmd": lambda: cmmd(generated=ours, reference=theirs),
    }


def _half_split(rows: Tensor, y: Side) -> Measured:
    """Where halves have a covariance of full rank; with fewer rows the expansion does not hold."""
    num, dim = rows.shape
    if num // 2 <= dim:
        raise ValueError(
            f"fd-half-split needs halves of more than {dim} rows, the number of dimensions; got "
            f"{num // 2}. Sample at least {2 * dim + 2}."
        )
    reference = y.rows if y.moments is None else y.moments
    assert reference is not None
    return half_split(generated=rows, reference=reference)
