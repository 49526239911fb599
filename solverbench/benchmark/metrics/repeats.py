"""What one run does not tell: spread over blocks of seeds, and the bias in the number of images."""

import math
import statistics
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from solverbench.benchmark.metrics.base import Fact, Measured, Rows, as_rows
from solverbench.benchmark.metrics.frechet import distance, mean_of_halves, squared_distance
from solverbench.benchmark.metrics.gaussians import Gaussian, Side

LEAST_BLOCKS = 3
SMALLEST = 5000  # rows of the smallest subset of FD-infinity


class Measure(Protocol):
    """A public metric of this package, for example ``frechet_distance``."""

    def __call__(self, *, generated: Rows, reference: Rows) -> Measured:
        """Measure rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """The same metric on disjoint blocks of seeds.

    Attributes:
        blocks: one measurement each, all on equally many rows.
    """

    blocks: tuple[Measured, ...]

    @property
    def mean(self) -> float:
        """Over blocks."""
        return statistics.fmean(block.value for block in self.blocks)

    @property
    def sd(self) -> float:
        """Standard deviation of one block's value."""
        return statistics.stdev(block.value for block in self.blocks)

    @property
    def se(self) -> float:
        """Standard error of ``mean``."""
        return self.sd / math.sqrt(len(self.blocks))

    @property
    def minimum(self) -> float:
        """What some papers report: lower than single runs, so never beside them."""
        return min(block.value for block in self.blocks)

    @property
    def minimum_label(self) -> str:
        """How tables must call it."""
        return f"min of {len(self.blocks)}"


def over_seed_blocks(
    measure: Measure, *, generated: Rows, reference: Rows, num_blocks: int = LEAST_BLOCKS
) -> Repeats:
    """Measure disjoint blocks of consecutive rows, each against the whole reference.

    Args:
        measure: for example ``kernel_distance``.
        generated: (M, D) in the order of the seeds; M mod R last rows are left out.
        reference: what ``measure`` takes.
        num_blocks: R, at least 3.

    Raises:
        ValueError: for fewer than three blocks, or than two rows a block.
    """
    rows = as_rows(generated)
    size = len(rows) // num_blocks if num_blocks > 0 else 0
    if num_blocks < LEAST_BLOCKS or size < 2:
        raise ValueError(
            f"a spread needs at least {LEAST_BLOCKS} blocks of two rows; got {num_blocks} blocks "
            f"of {size}."
        )
    parts = torch.split(rows, size)[:num_blocks]
    return Repeats(blocks=tuple(measure(generated=part, reference=reference) for part in parts))


def half_split(*, generated: Rows, reference: Side, splits: int = 3, seed: int = 0) -> Measured:
    """Frechet distance without its bias of order 1/M: 2 FD(M) - mean FD of two random halves.

    Args:
        generated: (M, D), M >= 4; for halves of more than D rows the expansion holds.
        reference: rows (N, D), or statistics.
        splits: random splits whose mean is taken.
        seed: of the splits.

    Returns:
        The estimate for infinitely many images, which may be negative. ``se`` is that of FD(M):
        the correction hardly adds to it (0.0142 instead of 0.0137 in the specification).

    Raises:
        ValueError: as ``frechet_distance``, for fewer than four rows or no split.

    Source: specification of the metrics, section 5.4 (b).
    """
    rows, target = as_rows(generated), Gaussian(reference)
    if len(rows) < 4 or splits < 1:
        raise ValueError(f"needs four rows and one split; got {len(rows)} and {splits}.")
    whole = distance(Gaussian(rows), target)
    facts: dict[str, Fact] = {"method": "half split", "splits": splits, "seed": seed}
    return replace(
        whole,
        value=2 * whole.value - mean_of_halves(rows, target, splits, seed),
        flags=_flags(whole.flags, len(rows) // 2, whole.dim),
        facts=facts | {"plain": whole.value},
    )


def frechet_infinity(
    *,
    generated: Rows,
    reference: Side,
    sizes: int = 15,
    smallest: int = SMALLEST,
    seed: int = 0,
) -> Measured:
    """Frechet distance extrapolated to infinitely many images, a line through 1/M.

    Args:
        generated: (M, D), M > ``smallest``.
        reference: rows (N, D), or statistics.
        sizes: subsets, of ``smallest`` to M rows in equal steps, each drawn without replacement.
        smallest: rows of the smallest; more than D, or the expansion does not hold.
        seed: of the draws.

    Returns:
        The intercept, which may be negative, without an error: subsets share rows. ``half_split``
        scatters less and costs less.

    Raises:
        ValueError: as ``frechet_distance``, or where the sizes cannot be drawn.

    Source: Chong and Forsyth (2020), algorithm 1. Differs: plain random numbers for the subsets.
    """
    rows, target = as_rows(generated), Gaussian(reference)
    if sizes < 2 or not 2 <= smallest < len(rows):
        raise ValueError(
            f"needs at least two sizes between {smallest} and the number of rows, {len(rows)}; "
            "name another smallest size or sample more."
        )
    rng, found = torch.Generator().manual_seed(seed), []
    steps = torch.linspace(smallest, len(rows), sizes, dtype=torch.float64).long().tolist()
    for size in steps:
        chosen = torch.randperm(len(rows), generator=rng)[:size]
        found.append(squared_distance(Gaussian(rows[chosen]), target)[0])
    line = statistics.linear_regression([1 / size for size in steps], found)
    facts: dict[str, Fact] = {"method": "FD-infinity", "sizes": sizes, "smallest": smallest}
    return Measured(
        value=line.intercept,
        num_generated=len(rows),
        num_reference=target.num,
        dim=target.dim,
        flags=_flags(("no_se",), smallest, target.dim),
        facts=facts | {"seed": seed, "plain": found[-1]},
    )


def _flags(flags: tuple[str, ...], smallest: int, dim: int) -> tuple[str, ...]:
    """Flags, with that of a singular covariance where the smallest subset has one."""
    more = ("rank_deficient",) if smallest <= dim and "rank_deficient" not in flags else ()
    return more + flags
