"""A table whose every entry trains: the largest family that the suite can express."""

from typing import Any

import torch
from torch import Tensor, nn

from solverbench.registry import solvers
from solverbench.schedule import TimeGrid
from solverbench.solvers.base import LearnableSolver, Network, Setting, State, combined
from solverbench.solvers.tableau import trace


class FreeTableau(LearnableSolver):
    """Every coefficient and every time of the table is a parameter; it starts as another solver.

    With e_k the raw network output of call k and z unit noise, call j sees
    y_j = A[j, 0] z + sum_{k < j} A[j, k + 1] e_k at time tau[j], and y_N is the sample;
    A = A0 + s * entries, tau = tau0 exp(shift). The row scale s = sqrt(alpha^2 + sigma^2) at the
    time of the row is how large a state is there: 1 where variance is preserved, so that one
    learning rate moves a VE and a VP table alike.

    Attributes:
        entries: corrections of the lower triangle, row by row, ((N + 1) (N + 2) / 2,).
        shift: corrections of the log times, (N,).
        start: table of the solver that it starts from, without gradients.

    Source: Shaul et al. (2024), Bespoke Non-Stationary Solvers.
    Differs: raw network outputs instead of velocities, all times free, any registered solver as
    the start.
    """

    source = "Shaul et al. (2024), Bespoke Non-Stationary Solvers, on raw network outputs"
    title = "free tableau (BNS-like)"

    def __init__(
        self,
        setting: Setting,
        *,
        start: str = "dpmpp-3m",
        start_options: dict[str, Any] | None = None,
        t_min: float | None = None,
    ) -> None:
        """Bind to a setting.

        Args:
            setting: noise schedule, NFE, network output.
            start: registered name of the solver that it equals before training.
            start_options: options of that solver.
            t_min: last time; the start's own by default.

        Raises:
            SolverBenchError: for a start of an unknown name.
            ValueError: for options or an NFE that the start refuses.
        """
        super().__init__(setting, t_min=t_min)
        end = {} if t_min is None else {"t_min": t_min}
        kind = solvers.get(start)
        try:
            first = kind(setting, **(end | (start_options or {})))
            self.start, self.flags = trace(first).detach(), first.flags
        except (ValueError, TypeError) as error:
            raise ValueError(f"its start {start} says: {error}") from error
        num, self._end = setting.nfe, torch.tensor(self.start.meta["t_min"], dtype=torch.float64)
        schedule, times = setting.noise_schedule, torch.cat([self.start.tau, self._end[None]])
        self._rows, self._columns = torch.tril_indices(num + 1, num + 1)
        self._scale = torch.hypot(schedule.alpha(times), schedule.sigma(times))[self._rows]
        self.entries = nn.Parameter(torch.zeros(len(self._rows), dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(num, dtype=torch.float64))

    def coefficients(self) -> Tensor:
        """The table, (N + 1, N + 1), lower triangular."""
        place = self._rows, self._columns
        return self.start.A.index_put(place, self._scale * self.entries, accumulate=True)

    def grid(self) -> TimeGrid:
        """Times of the calls, then the last one; not decreasing where a start repeats a time."""
        t = torch.cat([self.start.tau * self.shift.exp(), self._end[None]])
        return self.setting.noise_schedule.grid(t)

    def integrate(self, x: State, grid: TimeGrid, network: Network) -> State:
        """The table itself, row by row."""
        values = [x / self.setting.noise_schedule.prior_std]
        rows = self.coefficients().unbind()
        for t, row in zip(grid.t_eval.unbind(), rows[:-1], strict=True):
            values.append(network(combined(row, values), t, t).raw)
        return combined(rows[-1], values)
