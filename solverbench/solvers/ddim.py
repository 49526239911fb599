"""DDIM: Euler's method on the noise prediction."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from solverbench.schedule import TimeGrid
from solverbench.solvers.base import MultistepSolver, State


class DDIM(MultistepSolver):
    """One Euler step of d(x / alpha) = eps d(sigma / alpha); exact for a constant prediction."""

    source = "Song et al. (2021), DDIM, eq. 13"
    title = "DDIM"
    order = 1
    prediction: ClassVar[Literal["x0", "eps"]] = "eps"

    def update(self, x: State, i: int, grid: TimeGrid, history: Sequence[State]) -> State:
        """One step: x' = (alpha' / alpha) x + (sigma' - alpha' sigma / alpha) eps."""
        ratio = grid.alpha[i + 1] / grid.alpha[i]
        return ratio * x + (grid.sigma[i + 1] - ratio * grid.sigma[i]) * history[-1]
