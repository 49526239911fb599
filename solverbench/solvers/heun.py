"""Two-stage methods on the noise prediction: Heun and DPM-Solver-2."""

from collections.abc import Sequence

import torch

from solverbench.schedule import TimeGrid
from solverbench.solvers.base import Network, Setting, Solver, State


class Heun(Solver):
    """Heun's method on y = x / alpha against shat = sigma / alpha.

    Source: Karras et al. (2022), algorithm 1. Differs: the grid ends at t_min, not at 0; there the
    last step is left uncorrected only where ``final_euler`` says so.
    """

    source = "Karras et al. (2022), EDM, algorithm 1"
    title = "Heun"

    def __init__(
        self,
        setting: Setting,
        *,
        schedule: str | Sequence[float] = "logsnr",
        t_min: float | None = None,
        rho: float | None = None,
        final_euler: bool = True,
    ) -> None:
        """Bind to a setting.

        Args:
            setting: noise schedule, NFE, network output.
            schedule: name of a time schedule, or the list of its N + 1 times.
            t_min: last time; the noise schedule's own by default.
            rho: exponent of the schedules that have one.
            final_euler: leave the last step uncorrected, for 2 N - 1 calls; otherwise 2 N.
        """
        self.final_euler = final_euler
        super().__init__(setting, schedule=schedule, t_min=t_min, rho=rho)

    def num_steps(self, nfe: int) -> int:
        """Steps of two calls, the last one of one call with ``final_euler``."""
        if not self.final_euler:
            return _pairs("heun with final_euler=False", nfe)
        if nfe % 2 == 0:
            raise ValueError(
                "heun needs an odd nfe (two calls per step, one for the last); "
                f"got {nfe}. Use {nfe - 1} or {nfe + 1}."
            )
        return (nfe + 1) // 2

    def integrate(self, x: State, grid: TimeGrid, network: Network) -> State:
        """An Euler step to t', then the trapezoid with the slope found there."""
        alpha, shat = grid.alpha, grid.sigma / grid.alpha
        for i in range(grid.num_steps):
            y, h = x / alpha[i], shat[i + 1] - shat[i]
            d = network(x, grid.t[i], grid.t_eval[i]).eps
            x = alpha[i + 1] * (y + h * d)
            if i < grid.num_steps - 1 or not self.final_euler:
                d_next = network(x, grid.t[i + 1], grid.t[i + 1]).eps
                x = alpha[i + 1] * (y + h * (0.5 * d + 0.5 * d_next))
        return x


class DPMSolver2(Solver):
    """A midpoint method, the midpoint taken in log(sigma / alpha).

    Source: Lu et al. (2022), DPM-Solver, algorithm 1, in the form of Karras et al. (2022), table 1.
    """

    source = "Lu et al. (2022), DPM-Solver, algorithm 1"
    title = "DPM-Solver-2"

    def __init__(
        self,
        setting: Setting,
        *,
        schedule: str | Sequence[float] = "logsnr",
        t_min: float | None = None,
        rho: float | None = None,
        r: float = 0.5,
    ) -> None:
        """Bind to a setting.

        Args:
            setting: noise schedule, NFE, network output.
            schedule: name of a time schedule, or the list of its N + 1 times.
            t_min: last time; the noise schedule's own by default.
            rho: exponent of the schedules that have one.
            r: where the second call lies in the step, as a share of it, in (0, 1].
        """
        if not 0 < r <= 1:
            raise ValueError(f"r is {r}; it must lie in (0, 1]")
        self.r = r
        super().__init__(setting, schedule=schedule, t_min=t_min, rho=rho)

    def num_steps(self, nfe: int) -> int:
        """Two calls a step."""
        return _pairs("dpm-solver-2", nfe)

    def integrate(self, x: State, grid: TimeGrid, network: Network) -> State:
        """An Euler step to the midpoint, then a step with a mixture of both slopes."""
        r, alpha, shat = self.r, grid.alpha, grid.sigma / grid.alpha
        lam_m = (1 - r) * grid.lam[:-1] + r * grid.lam[1:]
        t_m = self.setting.noise_schedule.inverse_lam(lam_m)
        alpha_m, shat_m = self.setting.noise_schedule.alpha(t_m), torch.exp(-lam_m)
        for i in range(grid.num_steps):
            y = x / alpha[i]
            d = network(x, grid.t[i], grid.t_eval[i]).eps
            x_m = alpha_m[i] * (y + (shat_m[i] - shat[i]) * d)
            d_m = network(x_m, t_m[i], t_m[i]).eps
            slope = (1 - 1 / (2 * r)) * d + 1 / (2 * r) * d_m
            x = alpha[i + 1] * (y + (shat[i + 1] - shat[i]) * slope)
        return x


def _pairs(name: str, nfe: int) -> int:
    """Steps of two calls each; ValueError for an odd number of calls."""
    if nfe % 2:
        use = f"{nfe - 1} or {nfe + 1}" if nfe > 1 else "2"
        raise ValueError(f"{name} needs an even nfe (two calls per step); got {nfe}. Use {use}.")
    return nfe // 2
