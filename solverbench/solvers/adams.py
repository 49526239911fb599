"""Adams-Bashforth with the weights of the actual steps, in shat = sigma / alpha."""

from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from solverbench.schedule import TimeGrid
from solverbench.solvers.base import MultistepSolver, State


def quadrature(start: Tensor, end: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and weights between two numbers, (num,) each; differentiable."""
    points, weights = _legendre(num)
    return (start + end) / 2 + (end - start) / 2 * points, (end - start) / 2 * weights


@cache
def _legendre(num: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre on [-1, 1]."""
    points, weights = np.polynomial.legendre.leggauss(num)
    return torch.from_numpy(points), torch.from_numpy(weights)


def lagrange(known: Tensor, at: Tensor) -> Tensor:
    """Lagrange basis on nodes ``known`` (p,), evaluated at ``at`` (Q,): (p, Q)."""
    rows = []
    for j in range(len(known)):
        others = torch.cat([known[:j], known[j + 1 :]])
        rows.append(((at - others[:, None]) / (known[j] - others)[:, None]).prod(0))
    return torch.stack(rows)


def advance(x: State, i: int, grid: TimeGrid, history: Sequence[State], weights: Tensor) -> State:
    """One step: x' / alpha' = x / alpha + sum_j weights[j] history[-1 - j]."""
    y = x / grid.alpha[i]
    for lag, weight in enumerate(weights, start=1):
        y = y + weight * history[-lag]
    return grid.alpha[i + 1] * y


class _Adams(MultistepSolver):
    """Integrates the polynomial in shat through the latest noise predictions.

    Differs from the formulas of order 3 and 4 that circulate as iPNDM_v, which misplace a bracket.
    """

    source = "Hairer, Norsett, Wanner (1993), Solving ODEs I, III.5; Zhang and Chen (2023), rhoAB"
    prediction: ClassVar[Literal["x0", "eps"]] = "eps"

    def update(self, x: State, i: int, grid: TimeGrid, history: Sequence[State]) -> State:
        """Weights C_j = integral of l_j(s) ds over the step; four points are exact."""
        shat = grid.sigma / grid.alpha
        s, ds = quadrature(shat[i], shat[i + 1], 4)
        known = shat[i + 1 - len(history) : i + 1].flip(0)
        return advance(x, i, grid, history, lagrange(known, s) @ ds)


class Adams2(_Adams):
    """Two terms."""

    title = "Adams (2)"
    order = 2


class Adams3(_Adams):
    """Three terms."""

    title = "Adams (3)"
    order = 3


class Adams4(_Adams):
    """Four terms."""

    title = "Adams (4)"
    order = 4
