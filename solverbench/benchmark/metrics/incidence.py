"""Which balls hold which points, row by row: errors of precision, recall, density and coverage.

The reference is held fixed. Precision and density are means over generated rows, so a row's own
value is its influence. Coverage and recall are not: there it is what deleting the row takes away
(jackknife). By Efron and Stein (1981) that error is too wide on the mean, never too narrow.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from solverbench.benchmark.metrics.balls import (
    Distances,
    PointSet,
    full_float32,
    plan,
    radii,
    ranges,
)

PAIR = 32  # bytes for a pair of rows in ``_grown``


@dataclass(frozen=True, eq=False)
class Incidence:
    """How points (M, D) and balls around centres (N, D) meet; all integers.

    Attributes:
        around: (M,) balls that a point lies in.
        ball: (M,) one of them; only of use where it is the only one.
        held: (N,) points that a ball holds.
        point: (N,) one of them, likewise.
    """

    around: Tensor
    ball: Tensor
    held: Tensor
    point: Tensor


def incidence(
    points: Tensor, centres: Tensor, k: int, *, max_memory: int, strict: bool = True
) -> Incidence:
    """Count points inside balls, as exactly as ``balls.hits`` does.

    Args:
        points: (M, D), finite.
        centres: (N, D), finite, N > k.
        k: neighbours that a ball reaches to.
        max_memory: bytes beside the two sets; changes no count.
        strict: whether a point as far away as the radius is outside.

    Raises:
        ValueError: where max_memory is too little.
    """
    sizes = plan(max_memory, max(len(points), len(centres)), points.shape[1])
    with torch.no_grad(), full_float32():
        x, y = PointSet.of(points, sizes), PointSet.of(centres, sizes)
        reach = radii(y, k, sizes)
        around, ball = (x.values.new_zeros(len(points), dtype=torch.int64) for _ in range(2))
        held, point = (y.values.new_zeros(len(centres), dtype=torch.int64) for _ in range(2))
        for piece in Distances.between(x, y, sizes).pieces():
            inside = piece.inside(reach, strict=strict)
            around[piece.rows], ball[piece.rows] = inside.sum(dim=1), inside.byte().argmax(dim=1)
            here = inside.sum(dim=0)
            point = torch.where(here > 0, inside.byte().argmax(dim=0) + piece.rows.start, point)
            held += here
    return Incidence(around.cpu(), ball.cpu(), held.cpu(), point.cpu())


def coverage_influence(found: Incidence) -> Tensor:
    """What each point adds to the share of balls that hold a point, (M,), float64, by deleting it.

    Args:
        found: points generated, balls around the reference.
    """
    num = len(found.around)
    lost = torch.bincount(found.point[found.held == 1], minlength=num)
    return lost.double() * (num - 1) / len(found.held)


def recall_influence(
    found: Incidence, reference: Tensor, generated: Tensor, k: int, *, max_memory: int
) -> Tensor:
    """What each centre adds to the share of points inside a ball, (M,), float64, by deleting it.

    Its own ball goes, and those that reach past it grow to their next neighbour.

    Args:
        found: points of the reference, balls around the generated rows.
        reference: (N, D).
        generated: (M, D), M > k + 1.
        k: neighbours that a ball reaches to.
        max_memory: bytes beside the two sets.
    """
    num = len(generated)
    open_ = (found.around < 2).nonzero()[:, 0]  # reference rows that a deletion can change
    i, j = _grown(reference[open_], generated, k, max_memory)
    alone = found.around[open_[i]] == 1
    gained = torch.bincount(j[~alone], minlength=num)
    kept = alone & (j == found.ball[open_[i]])  # its ball goes, but another one grows over it
    only = found.ball[found.around == 1]
    lost = torch.bincount(only, minlength=num) - torch.bincount(j[kept], minlength=num)
    return (lost - gained).double() * (num - 1) / len(reference)


def _grown(points: Tensor, centres: Tensor, k: int, max_memory: int) -> tuple[Tensor, Tensor]:
    """Pairs (P,), (P,) of a point and a centre without which some ball would grow over the point.

    Distances are rounded: an error does not need those of ``balls``.
    """
    mean, num = centres.mean(dim=0, dtype=torch.float64).float(), len(centres)
    x, y = (rows.float() - mean for rows in (points, centres))
    step = max(1, max_memory // (PAIR * num))
    nearest, nexts, members = [], [], []
    with torch.no_grad(), full_float32():
        for rows in ranges(num, step):
            apart = torch.cdist(y[rows], y)
            apart[torch.arange(len(apart)), torch.arange(rows.start, rows.stop)] = -1  # itself
            least = apart.topk(k + 2, largest=False)
            nearest.append(least.values[:, k])
            nexts.append(least.values[:, k + 1])
            members.append(least.indices[:, 1 : k + 1])
        inner, outer, neighbours = (torch.cat(parts) for parts in (nearest, nexts, members))
        pairs = []
        for rows in ranges(len(x), step):
            apart = torch.cdist(x[rows], y)
            i, a = ((apart >= inner) & (apart < outer)).nonzero(as_tuple=True)
            found = (i + rows.start)[:, None] * num + neighbours[a]
            pairs.append(found.flatten().unique())
    both = torch.cat(pairs) if pairs else torch.zeros(0, dtype=torch.int64)
    return both // num, both % num
