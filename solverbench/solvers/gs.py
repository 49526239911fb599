"""Generalized Solver: DPM-Solver++(3M) with learned times and corrections of every coefficient."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from solverbench.schedule import TimeGrid
from solverbench.solvers.dpmpp import phis
from solverbench.solvers.stick import StickMultistep


class GS(StickMultistep):
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

    def weights(self, grid: TimeGrid) -> tuple[Tensor, Tensor]:
        """Theory plus correction."""
        ratio = grid.sigma[1:] / grid.sigma[:-1]
        states = self.a.T + F.pad(ratio[:, None], (0, self.kept - 1))
        return states, self._of_predictions(grid)

    def _of_predictions(self, grid: TimeGrid) -> Tensor:
        """Weights of the data predictions, (N, K).

        A step takes the newest prediction m0 and the differences (m0 - m1) / r0 and
        (m1 - m2) / r1, as many as there are; the corrections of longer lags stand alone.
        """
        alpha, h, c = grid.alpha[1:], grid.lam.diff(), self.c
        f1, f2, f3 = phis(h)
        newest = -(alpha * f1 + c[0])
        if self.kept == 1:
            return newest[:, None]
        earlier, has1, has2 = _past(len(h))
        r0, r1 = (h[earlier] / h).unbind()
        of_D1 = -(alpha * f1 / 2 + c[1])
        if self.kept == 2:
            D10 = of_D1 * has1 / r0
            return torch.stack([newest + D10, -D10], dim=1)
        of_D1 = torch.where(has2 > 0, alpha * f2 + c[1], of_D1) * has1
        of_D2 = -(alpha * f3 + c[2])
        of_D11 = -(of_D1 * r0 + of_D2) * has2 / (r0 + r1)  # D1 = D10 + r0 D2
        D10, D11 = (of_D1 - of_D11) / r0, of_D11 / r1  # D2 = (D10 - D11) / (r0 + r1)
        return torch.cat([torch.stack([newest + D10, D11 - D10, -D11]), c[3:]]).T


@cache
def _past(num: int) -> tuple[Tensor, Tensor, Tensor]:
    """The steps of lag 1 and 2 before each, (2, N); 1 where there is one such, and two, else 0."""
    n = torch.arange(num)
    has1, has2 = ((n >= lag).double() for lag in (1, 2))
    return (n - torch.tensor([[1], [2]])).clamp(min=0), has1, has2
