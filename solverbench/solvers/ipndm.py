"""iPNDM: Adams-Bashforth weights of equal steps on the noise prediction."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from solverbench.schedule import TimeGrid
from solverbench.solvers.base import MultistepSolver, State

WEIGHTS = {  # newest first
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


class _IPNDM(MultistepSolver):
    """The weights ignore that steps differ, so two or more terms converge at order 2."""

    source = "Zhang and Chen (2023), DEIS, section 4 (iPNDM), after Liu et al. (2022), PNDM"
    prediction: ClassVar[Literal["x0", "eps"]] = "eps"

    def update(self, x: State, i: int, grid: TimeGrid, history: Sequence[State]) -> State:
        """One step: x' = (alpha' / alpha) x - sigma' expm1(h) e, e the weighted predictions."""
        newest, *older = WEIGHTS[len(history)]
        e = newest * history[-1]
        for lag, weight in enumerate(older, start=2):
            e = e + weight * history[-lag]
        h = grid.lam[i + 1] - grid.lam[i]
        return grid.alpha[i + 1] / grid.alpha[i] * x - grid.sigma[i + 1] * torch.expm1(h) * e


class IPNDM1(_IPNDM):
    """One term: DDIM."""

    title = "iPNDM (1M)"
    order = 1


class IPNDM2(_IPNDM):
    """Two terms."""

    title = "iPNDM (2M)"
    order = 2


class IPNDM3(_IPNDM):
    """Three terms."""

    title = "iPNDM (3M)"
    order = 3


class IPNDM4(_IPNDM):
    """Four terms."""

    title = "iPNDM (4M)"
    order = 4
