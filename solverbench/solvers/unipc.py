"""UniPC: a predictor and a corrector that share their network calls."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from solverbench.schedule import TimeGrid
from solverbench.solvers.base import MultistepSolver, Network, Setting, State, choice


class _UniPC(MultistepSolver):
    """Predict, call the network there, correct with what it said; N calls in all.

    The last step is not corrected: its call would serve nothing else.
    """

    source = "Zhao et al. (2023), UniPC, algorithms 1 and 2 (data prediction: appendix A)"
    prediction: ClassVar[Literal["x0", "eps"]] = "x0"

    def __init__(
        self,
        setting: Setting,
        *,
        schedule: str | Sequence[float] = "logsnr",
        t_min: float | None = None,
        rho: float | None = None,
        lower_order_final: bool = True,
        variant: str = "bh1",
        detached: bool = False,
    ) -> None:
        """Bind to a setting.

        Args:
            setting: noise schedule, NFE, network output.
            schedule: name of a time schedule, or the list of its N + 1 times.
            t_min: last time; the noise schedule's own by default.
            rho: exponent of the schedules that have one.
            lower_order_final: fall to orders 2 and 1 in the last steps.
            variant: B(h) = h (``bh1``) or exp(h) - 1 (``bh2``), with h = -step.
            detached: no gradient through the matrix of step ratios, as in the public code; what
                is sampled stays the same.
        """
        self.detached = detached
        self.variant = choice("variant", variant, ("bh1", "bh2"))
        super().__init__(
            setting, schedule=schedule, t_min=t_min, rho=rho, lower_order_final=lower_order_final
        )

    def integrate(self, x: State, grid: TimeGrid, network: Network) -> State:
        """Predict, call, correct; the history holds calls at predicted points."""
        num = grid.num_steps
        history = [self._call(x, 0, grid, network)]
        for i in range(num - 1):
            used = history[-self.order_at(i, num) :]
            predicted = self.update(x, i, grid, used)
            m = self._call(predicted, i + 1, grid, network)
            x = self.correct(x, i, grid, used, m)
            history = [*history, m][-self.order :]
        return self.update(x, num - 1, grid, history[-self.order_at(num - 1, num) :])

    def _call(self, x: State, i: int, grid: TimeGrid, network: Network) -> State:
        """The data prediction at node i."""
        t_model = grid.t_eval[i]
        return network(x, grid.t[i] if self.conversion == "node" else t_model, t_model).x0

    def update(self, x: State, i: int, grid: TimeGrid, history: Sequence[State]) -> State:
        """The predictor, UniP."""
        order = len(history)
        base, scale = self._base(x, i, grid, history[-1])
        if order == 1:
            return base
        R, b, d = self._system(i, grid, history)
        # as published, order 2 takes 1/2 for b[0], to which it is equal for small steps
        half = torch.full_like(b[:1], 0.5)
        rho = half if order == 2 else torch.linalg.solve(R[:-1, :-1], b[:-1])
        return base - scale * _total(rho, d)

    def correct(
        self, x: State, i: int, grid: TimeGrid, history: Sequence[State], m: State
    ) -> State:
        """The corrector, UniC; ``m`` is the prediction at the predicted point."""
        base, scale = self._base(x, i, grid, history[-1])
        R, b, d = self._system(i, grid, history)
        half = torch.full_like(b, 0.5)
        rho = half if len(history) == 1 else torch.linalg.solve(R, b)
        return base - scale * _total(rho, [*d, m - history[-1]])

    def _base(self, x: State, i: int, grid: TimeGrid, m: State) -> tuple[State, Tensor]:
        """The first-order step, and alpha' B(h)."""
        hh = grid.lam[i] - grid.lam[i + 1]
        alpha, ratio = grid.alpha[i + 1], grid.sigma[i + 1] / grid.sigma[i]
        return ratio * x - alpha * torch.expm1(hh) * m, alpha * self._scale(hh)

    def _scale(self, hh: Tensor) -> Tensor:
        """B(h)."""
        return hh if self.variant == "bh1" else torch.expm1(hh)

    def _system(
        self, i: int, grid: TimeGrid, history: Sequence[State]
    ) -> tuple[Tensor, Tensor, list[State]]:
        """R (p, p) and b (p,) of the order conditions, and the p - 1 differences of the past."""
        p, lam = len(history), grid.lam
        h = lam[i + 1] - lam[i]
        past = [(lam[i - k] - lam[i]) / h for k in range(1, p)]
        r = torch.stack([*past, torch.ones_like(h)])
        r = r.detach() if self.detached else r
        g = [torch.exp(-h)]
        for k in range(p + 1):
            g.append((g[k] - 1 / math.factorial(k)) / -h)
        scale = -h / self._scale(-h)
        b = torch.stack([scale * g[k + 1] * math.factorial(k) for k in range(1, p + 1)])
        d = [(history[-1 - k] - history[-1]) / past[k - 1] for k in range(1, p)]
        return r ** torch.arange(p)[:, None], b, d


def _total(weights: Tensor, terms: Sequence[State]) -> State:
    """sum_k weights[k] terms[k]."""
    total = weights[0] * terms[0]
    for weight, term in zip(weights[1:], terms[1:], strict=True):
        total = total + weight * term
    return total


class UniPC2(_UniPC):
    """UniPC of order 2."""

    title = "UniPC (2M)"
    order = 2


class UniPC3(_UniPC):
    """UniPC of order 3."""

    title = "UniPC (3M)"
    order = 3
