"""Generalized Solver: DPM-Solver++(3M) with learned times and corrections of every coefficient."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from solverbench.schedule import TimeGrid
from solverbench.solvers.base import LearnableSolver, Network, Setting, State, choice, combined
from solverbench.solvers.dpmpp import phis

SQUEEZE = 1e-5  # keeps every factor of the stick-breaking inside (0, 1)
LEARN = {"all": "", "times": "times only", "coefficients": "coefficients only"}


class StickTimes(LearnableSolver):
    """What GS and its ablations share: nodes by stick-breaking, network times, tables of weights.

    A subclass names its tables, which become attributes. What does not train is a buffer and no
    parameter.

    Attributes:
        theta: logits of the interior nodes, (N - 1,); theta[0] sets the smallest.
        xi: network time minus node, (N,).
        kept: K, how many states and predictions are kept.

    Source: GAS (arXiv 2510.17699), eq. 14, as the authors' code computes it.
    Differs from the paper: the stick is broken from the data end.
    """

    theta: Tensor
    xi: Tensor

    def __init__(
        self,
        setting: Setting,
        *,
        schedule: str | Sequence[float] = "time-uniform",
        t_min: float | None = None,
        rho: float | None = None,
        history: int | None = None,
        learn: str = "all",
        decoupled: bool = True,
    ) -> None:
        """Bind to a setting.

        Args:
            setting: noise schedule, NFE, network output.
            schedule: initial time schedule, or the list of its N + 1 times.
            t_min: last time; the noise schedule's own by default.
            rho: exponent of the schedules that have one.
            history: K, states and predictions kept, at most; NFE by default.
            learn: what trains: ``all``, ``times`` (theta and xi) or ``coefficients`` (the tables).
            decoupled: network times of their own; False leaves xi out.
        """
        super().__init__(setting, schedule=schedule, t_min=t_min, rho=rho)
        num, part = setting.nfe, LEARN[choice("learn", learn, LEARN)]
        if history is not None and history < 1:
            raise ValueError(f"history must be at least 1; got {history}")
        self.kept = min(history or num, num)
        times, coefficients = learn != "coefficients", learn != "times"
        self._hold("theta", stick_logits(self._nodes), times)
        self._hold("xi", torch.zeros(num, dtype=torch.float64), times and decoupled)
        for name, value in self.tables().items():
            self._hold(name, value, coefficients)
        parts = [part, "" if decoupled else "without xi", f"history {history}" if history else ""]
        if any(parts):
            self.title = f"{self.title} ({', '.join(filter(None, parts))})"

    def _hold(self, name: str, value: Tensor, trained: bool) -> None:
        """A parameter if it trains, else a buffer."""
        if trained:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    @abstractmethod
    def tables(self) -> dict[str, Tensor]:
        """The tables by name with their initial values, lag i in row i - 1; (K, N) each."""

    def num_used(self) -> int:
        """Entries of lag i count from step i - 1 on, where there is such a past."""
        lags = sum(min(n + 1, self.kept) for n in range(self.setting.nfe))
        return sum(lags if p.dim() == 2 else p.numel() for p in self.parameters())

    def grid(self) -> TimeGrid:
        """Nodes by stick-breaking between the fixed ends; network times shifted by ``xi``."""
        t = stick_nodes(self.theta, self._nodes[0], self._nodes[-1])
        return self.setting.noise_schedule.grid(t, t[:-1] + self.xi)


class GS(StickTimes):
    """Learns the nodes, the network times and corrections to a third-order multistep method.

    Without corrections it is DPM-Solver++(3M) that does not lower its order at the end. The first
    and the last node are fixed.

    Attributes:
        c: corrections of lag i in row i - 1: of the coefficients of the newest prediction and of
            the finite differences, then of plain predictions; (K, N).
        a: corrections of the weights of states, lag i in row i - 1, (K, N).

    Source: GAS (arXiv 2510.17699), algorithm 1 and eq. 14, as the authors' code computes them.
    Differs from the paper: the stick is broken from the data end.
    """

    source = "GAS (arXiv 2510.17699), algorithm 1"
    title = "GS"
    c: Tensor
    a: Tensor

    def tables(self) -> dict[str, Tensor]:
        """No corrections at the start."""
        shape = self.kept, self.setting.nfe
        return {name: torch.zeros(shape, dtype=torch.float64) for name in ("c", "a")}

    def integrate(self, x: State, grid: TimeGrid, network: Network) -> State:
        """Call, remember state and prediction, combine; N times."""
        xs: list[State] = []
        ms: list[State] = []
        of_states, of_predictions = (table.unbind() for table in self._weights(grid))
        for n in range(grid.num_steps):
            m = network(x, grid.t[n], grid.t_eval[n]).x0
            xs, ms = [x, *xs][: self.kept], [m, *ms][: self.kept]  # newest first: lag i at i - 1
            weights = torch.cat([of_states[n][: len(xs)], of_predictions[n][: len(ms)]])
            x = combined(weights, [*xs, *ms])
        return x

    def _weights(self, grid: TimeGrid) -> tuple[Tensor, Tensor]:
        """Of the states and of the predictions kept: lag i of step n in [n, i - 1]; (N, K) each.

        Theory plus correction; where there is no such past, numbers without meaning.
        """
        ratio = grid.sigma[1:] / grid.sigma[:-1]
        states = torch.cat([ratio[:, None], ratio.new_zeros(len(ratio), self.kept - 1)], dim=1)
        return states + self.a.T, self._of_predictions(grid)

    def _of_predictions(self, grid: TimeGrid) -> Tensor:
        """Weights of the data predictions, (N, K): differences of the newest three, then others."""
        alpha, h, c = grid.alpha[1:], grid.lam.diff(), self.c
        f1, f2, f3 = phis(h)
        m, D10, D11 = _differences(h)
        newest = -(alpha * f1 + c[0])[:, None] * m
        if self.kept == 1:
            return newest[:, :1]
        second = newest - (alpha * f1 / 2 + c[1])[:, None] * D10
        if self.kept == 2:
            return torch.cat([newest[:1], second[1:]])[:, :2]
        r0, r1 = (r[:, None] for r in _ratios(h))
        D2 = (D10 - D11) / (r0 + r1)
        D1 = D10 + r0 * D2
        third = newest + (alpha * f2 + c[1])[:, None] * D1 - (alpha * f3 + c[2])[:, None] * D2
        theory = torch.cat([newest[:1], second[1:2], third[2:]])
        return torch.cat([theory, c[3:].T], dim=1)


def _ratios(h: Tensor) -> tuple[Tensor, Tensor]:
    """Steps before over this one: of lag 1 and of lag 2, (N,) each; 1 where there was none."""
    ones = torch.ones_like(h)
    r0, r1 = (torch.cat([ones[:lag], h[:-lag] / h[lag:]]) for lag in (1, 2))
    return r0[: len(h)], r1[: len(h)]


def _differences(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The newest prediction and the differences D10 and D11 as weights of three, (N, 3) each."""
    r0, r1 = _ratios(h)
    none = torch.zeros_like(h)
    m = torch.stack([none + 1, none, none], dim=1)
    D10 = torch.stack([1 / r0, -1 / r0, none], dim=1)
    D11 = torch.stack([none, 1 / r1, -1 / r1], dim=1)
    return m, D10, D11


def stick_nodes(theta: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Nodes by stick-breaking.

    Args:
        theta: logits, (N - 1,); theta[0] sets the smallest interior node.
        start: first node T, ().
        end: last node eps, ().

    Returns:
        (N + 1,), decreasing, from ``start`` to ``end``.

    Source: gs-gas.md section 4, after the authors' code.
    """
    share = 1 - torch.cumprod(SQUEEZE + (1 - 2 * SQUEEZE) * torch.sigmoid(theta), dim=0)
    inner = end + (start - end) * share
    return torch.cat([end[None], inner, start[None]]).flip(0)


def stick_logits(t: Tensor) -> Tensor:
    """The logits whose nodes are ``t`` (N + 1,), decreasing: (N - 1,).

    Raises:
        ValueError: where two nodes are too close for the parametrisation.
    """
    left = (t[0] - t[1:].flip(0)) / (t[0] - t[-1])  # 1, then what remains of the stick
    share = (left[1:] / left[:-1] - SQUEEZE) / (1 - 2 * SQUEEZE)
    if bool(((share <= 0) | (share >= 1)).any()):
        raise ValueError("the initial grid has nodes too close together for gs; use fewer steps")
    return torch.logit(share)
