"""DPM-Solver++, multistep."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from solverbench.schedule import TimeGrid
from solverbench.solvers.base import MultistepSolver, Setting, State


def phis(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """phi_1 = expm1(-h), phi_2 = phi_1 / h + 1, phi_3 = phi_2 / h - 1/2; any shape.

    Small steps use the series, since the quotients lose digits there.
    """
    f1 = torch.expm1(-h)
    f2 = f1 / h + 1
    f3 = f2 / h - 0.5
    small = h.detach().abs() < 1e-3
    if not bool(small.any()):
        return f1, f2, f3
    f2 = torch.where(small, h / 2 - h**2 / 6 + h**3 / 24, f2)
    f3 = torch.where(small, -h / 6 + h**2 / 24 - h**3 / 120, f3)
    return f1, f2, f3


class _DPMpp(MultistepSolver):
    """The exponential integrator in lambda, on finite differences of the data prediction."""

    source = "Lu et al. (2022), DPM-Solver++, algorithm 2 and appendix B"
    prediction: ClassVar[Literal["x0", "eps"]] = "x0"
    curvature: ClassVar[float] = 1.0  # factor of D2

    def __init__(
        self,
        setting: Setting,
        *,
        schedule: str | Sequence[float] = "logsnr",
        t_min: float | None = None,
        rho: float | None = None,
        lower_order_final: bool = True,
    ) -> None:
        """Bind to a setting.

        Args:
            setting: noise schedule, NFE, network output.
            schedule: name of a time schedule, or the list of its N + 1 times.
            t_min: last time; the noise schedule's own by default.
            rho: exponent of the schedules that have one.
            lower_order_final: fall to orders 2 and 1 in the last steps.
        """
        super().__init__(
            setting, schedule=schedule, t_min=t_min, rho=rho, lower_order_final=lower_order_final
        )

    def update(self, x: State, i: int, grid: TimeGrid, history: Sequence[State]) -> State:
        """One step, of the order that the history allows."""
        alpha, sigma, lam = grid.alpha[i + 1], grid.sigma, grid.lam
        h = lam[i + 1] - lam[i]
        f1, f2, f3 = phis(h)
        M0 = history[-1]
        first = sigma[i + 1] / sigma[i] * x - alpha * f1 * M0
        if len(history) == 1:
            return first
        r0 = (lam[i] - lam[i - 1]) / h
        D10 = (M0 - history[-2]) / r0
        if len(history) == 2:
            return first - 0.5 * alpha * f1 * D10
        r1 = (lam[i - 1] - lam[i - 2]) / h
        D11 = (history[-2] - history[-3]) / r1
        D1 = D10 + r0 / (r0 + r1) * (D10 - D11)
        D2 = (D10 - D11) / (r0 + r1)
        return first + alpha * f2 * D1 - self.curvature * alpha * f3 * D2


class DPMpp2M(_DPMpp):
    """DPM-Solver++(2M)."""

    title = "DPM++ (2M)"
    order = 2


class DPMpp3M(_DPMpp):
    """DPM-Solver++(3M) as published and as in every table: a method of order 2.

    D2 is a divided difference, half of a second derivative; the published multistep code lacks the
    factor 2 that the singlestep code has.
    """

    title = "DPM++ (3M)"
    order = 3


class DPMpp3MExact(_DPMpp):
    """DPM-Solver++(3M) with the missing factor 2, and so of order 3."""

    source = "Lu et al. (2022), DPM-Solver++, appendix B, with its last term doubled"
    title = "DPM++ (3M, exact)"
    order = 3
    curvature = 2.0
