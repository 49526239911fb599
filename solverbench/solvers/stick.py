"""Solvers on times of a broken stick, which mix states and predictions by tables of weights."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solverbench.schedule import Prediction, TimeGrid
from solverbench.solvers.base import LearnableSolver, Network, Setting, State, choice, combined
from solverbench.solvers.tableau import Tableau, decoupled, described

SQUEEZE = 1e-5  # keeps every factor of the stick-breaking inside (0, 1)
LEARN = {"all": "", "times": "times only", "coefficients": "coefficients only"}


class StickMultistep(LearnableSolver):
    """What GS and its ablations share: nodes by stick-breaking, network times, weighted steps.

    A step is a weighted sum of the states and data predictions kept. A subclass names its tables,
    which become attributes, and writes ``weights``, which makes the sums of them. What does not
    train is a buffer and no parameter.

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

    @abstractmethod
    def weights(self, grid: TimeGrid) -> tuple[Tensor, Tensor]:
        """What a step takes of the states and of the data predictions kept.

        Args:
            grid: what ``grid()`` gave.

        Returns:
            Two tables (N, K): step n takes [n, i - 1] of lag i; finite numbers without meaning
            where there is no such past.
        """

    def integrate(self, x: State, grid: TimeGrid, network: Network) -> State:
        """Call, remember state and prediction, combine; N times."""
        xs: list[State] = []
        ms: list[State] = []
        of_states, of_predictions = (table.unbind() for table in self.weights(grid))
        for n in range(grid.num_steps):
            m = network(x, grid.t[n], grid.t_eval[n]).x0
            xs, ms = [x, *xs][: self.kept], [m, *ms][: self.kept]  # newest first: lag i at i - 1
            weights = torch.cat([of_states[n][: len(xs)], of_predictions[n][: len(ms)]])
            x = combined(weights, [*xs, *ms])
        return x

    def tableau(self) -> Tableau:
        """The table that ``integrate`` has, in one solve of its recurrence instead of N steps.

        With state rows X, X[n + 1] = sum_j S[n, j] X[j] + P[n, j] (p_j X[j] + q_j e_j): a lower
        triangular system. A subclass with an ``integrate`` of its own is traced like any solver.
        """
        if type(self).integrate is not StickMultistep.integrate:
            return super().tableau()
        grid = self.grid()
        of_states, of_predictions = self._by_call(torch.stack(self.weights(grid)))
        of_state, of_raw = self._data_predictions(grid)
        before = F.pad(of_states + of_predictions * of_state, (0, 1, 1, 0))  # of rows 0 to N - 1
        start = before.new_zeros(len(before), len(before))
        start[0, 0] = self.setting.noise_schedule.prior_std
        known = start + F.pad(of_predictions * of_raw, (1, 0, 1, 0))
        A = torch.linalg.solve_triangular(-before, known, upper=False, unitriangular=True)
        return described(self, grid, A, grid.t_eval)

    def _by_call(self, tables: Tensor) -> Tensor:
        """Tables over lags (2, N, K) as tables over calls, call j in column j; (2, N, N)."""
        lag, there = _lags(self.setting.nfe, self.kept)
        return torch.where(there, tables.gather(2, lag.expand(2, -1, -1)), 0.0)

    def _data_predictions(self, grid: TimeGrid) -> Tensor:
        """What each data prediction takes of its state and of the raw output, (2, N)."""
        own, model = grid.t[:-1], (grid.alpha_eval, grid.sigma_eval)
        apart = decoupled(own, grid.t_eval)
        convert = (grid.alpha[:-1], grid.sigma[:-1]) if apart else None
        x, raw = torch.eye(2, dtype=own.dtype)[:, :, None].expand(2, 2, len(own))
        return Prediction(x, raw, self.setting.output, model, convert).x0


@cache
def _lags(num: int, kept: int) -> tuple[Tensor, Tensor]:
    """Row of a table that step n reads for call j, and whether there is one; (N, N) each."""
    lag = torch.arange(num)[:, None] - torch.arange(num)
    return lag.clamp(0, kept - 1), (lag >= 0) & (lag < kept)


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
