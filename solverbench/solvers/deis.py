"""DEIS: Adams-Bashforth with the polynomial in the time of a VP process (tAB)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from solverbench.schedule import TimeGrid, wrapped_between
from solverbench.solvers.adams import advance, lagrange, quadrature
from solverbench.solvers.base import MultistepSolver, Setting, State


class _DEIS(MultistepSolver):
    """Integrates eps(tau) d shat over each step, eps a polynomial in tau = t(shat).

    Source: Zhang and Chen (2023), eq. 15. Differs from public code: Gauss-Legendre with 200 points
    where that takes a Riemann sum of 10,000.
    """

    source = "Zhang and Chen (2023), DEIS, eq. 15 (tAB)"
    prediction: ClassVar[Literal["x0", "eps"]] = "eps"

    def __init__(
        self,
        setting: Setting,
        *,
        schedule: str | Sequence[float] = "vp-time",
        t_min: float | None = None,
        rho: float | None = None,
        afs: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ) -> None:
        """Bind to a setting.

        Args:
            setting: noise schedule, NFE, network output.
            schedule: name of a time schedule, or the list of its N + 1 times.
            t_min: last time; the noise schedule's own by default.
            rho: exponent of the schedules that have one; 2 for ``vp-time``.
            afs: analytical first step; see ``MultistepSolver``.
            sigma_min: shat at tau = 1e-3; shat at the last node by default.
            sigma_max: shat at tau = 1; shat at the first node by default.
        """
        super().__init__(setting, schedule=schedule, t_min=t_min, rho=rho, afs=afs)
        high, low = setting.noise_schedule.shat(self._nodes[[0, -1]]).tolist()
        low = low if sigma_min is None else sigma_min
        high = high if sigma_max is None else sigma_max
        if not 0 < low < high:
            raise ValueError(f"sigma_min {low} and sigma_max {high} must be positive and increase")
        self.wrapped = wrapped_between(low, high)

    def weights(self, i: int, order: int, grid: TimeGrid) -> Tensor:
        """C_j of step ``i``, newest prediction first, (order,)."""
        wrapped = self.wrapped
        tau = wrapped.inverse_lam(grid.lam[i + 1 - order : i + 2])
        u, du = quadrature(tau[-2], tau[-1], 200)
        shat = wrapped.shat(u)
        slope = (wrapped.beta_0 + (wrapped.beta_1 - wrapped.beta_0) * u) * (shat**2 + 1) / 2 / shat
        return lagrange(tau[:-1].flip(0), u) @ (slope * du)

    def update(self, x: State, i: int, grid: TimeGrid, history: Sequence[State]) -> State:
        """Weights C_j = integral of l_j(u) (d shat / du) du over the step."""
        return advance(x, i, grid, history, self.weights(i, len(history), grid))


class DEIS2(_DEIS):
    """Two terms."""

    title = "DEIS (2)"
    order = 2


class DEIS3(_DEIS):
    """Three terms."""

    title = "DEIS (3)"
    order = 3


class DEIS4(_DEIS):
    """Four terms."""

    title = "DEIS (4)"
    order = 4
