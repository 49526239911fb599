"""GS without its theory: free multipliers of predictions and states, with GS's times.

Three readings of what the GAS paper calls "without theory", "S4S LMS" and "S4S LMS + PC". With
C = -alpha' phi_1 and ratio = sigma' / sigma, primes at the next node, all contain the step

    ratio x_n + C sum_i c_i m_(n+1-i)

whose c are, at the start, the weights of DPM-Solver++(3M) without lower order at the end.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from solverbench.schedule import TimeGrid
from solverbench.solvers.base import Setting
from solverbench.solvers.dpmpp import DPMpp3M
from solverbench.solvers.stick import StickMultistep


class _Multipliers(StickMultistep):
    """The first table; a subclass writes ``weights``.

    Attributes:
        c: multipliers of data predictions, lag i in row i - 1, (K, N).

    Source: gs-gas.md section 7.
    """

    c: Tensor

    def tables(self) -> dict[str, Tensor]:
        """``c`` that equals DPM-Solver++(3M) on the initial grid."""
        return {"c": _dpmpp_multipliers(self.setting, self.grid(), self.kept)}


class S4SLMSGas(_Multipliers):
    """Linear multistep alone, trained as in the GAS paper: x' = ratio x_n + C sum_i c_i m.

    At the start it is DPM-Solver++(3M) without lower order at the end. It is not S4S as its own
    authors train it.

    Source: GAS (arXiv 2510.17699), table 10.
    """

    source = "GAS (arXiv 2510.17699), table 10, S4S LMS"
    title = "S4S LMS (as in GAS)"

    def weights(self, grid: TimeGrid) -> tuple[Tensor, Tensor]:
        """Weighted predictions on top of the scaled state."""
        ratio, C = _scales(grid)
        return F.pad(ratio, (0, self.kept - 1)), C * self.c.T


class _WithStates(_Multipliers):
    """Multipliers in a second table ``a``, zero at the start.

    Attributes:
        a: second table, lag i in row i - 1, (K, N).
    """

    a: Tensor

    def tables(self) -> dict[str, Tensor]:
        """``c`` of DPM-Solver++(3M), and no ``a``."""
        found = super().tables()
        return {**found, "a": torch.zeros_like(found["c"])}


class GSNoTheory(_WithStates):
    """GS without theory, read as x' = ratio x_n + C sum_i c_i m + sum_i a_i x.

    Free weights for all predictions and all states, with as many parameters as GS. At the start
    (a = 0) it is DPM-Solver++(3M) without lower order at the end, as the paper demands of the
    ablation.

    Source: GAS (arXiv 2510.17699), table 5.
    Differs from the authors' code: its only path without theory is ``S4SPCGas``, which does not
    start as DPM-Solver++(3M); the paper's description is followed instead.
    """

    source = "GAS (arXiv 2510.17699), table 5, w/o theory, as the text describes its start"
    title = "GS without theory (free state weights)"

    def weights(self, grid: TimeGrid) -> tuple[Tensor, Tensor]:
        """Weighted predictions and states on top of the scaled state."""
        ratio, C = _scales(grid)
        return F.pad(ratio, (0, self.kept - 1)) + self.a.T, C * self.c.T


class S4SPCGas(_WithStates):
    """NOT consistent: the LMS + PC baseline of GAS's tables 3 and 10, for reproduction only.

    y = ratio x_n + C sum_i c_i m, then x' = ratio y + C sum_i a_i m: sigma' / sigma is applied
    twice, so at the start (a = 0) a step is no consistent one-step map, and the error of the
    untrained method does not vanish with more steps. Use ``S4SLMSGas`` or ``GSNoTheory`` for
    anything but the reproduction of those tables.

    Source: GAS (arXiv 2510.17699), tables 3 and 10, as the authors' code computes it.
    """

    source = "GAS (arXiv 2510.17699), tables 3 and 10, S4S LMS + PC, as the authors' code has it"
    title = "S4S LMS+PC (inconsistent, as in GAS)"
    consistent = False
    flags = ("inconsistent at initialisation, for reproduction only",)

    def tables(self) -> dict[str, Tensor]:
        """As for the others; ValueError for a history below 3, which the original cannot have."""
        if self.kept < 3:
            raise ValueError(f"nfe and history must be at least 3; got a history of {self.kept}")
        return super().tables()

    def weights(self, grid: TimeGrid) -> tuple[Tensor, Tensor]:
        """Multistep, then a corrector that scales once more."""
        ratio, C = _scales(grid)
        return F.pad(ratio**2, (0, self.kept - 1)), C * (ratio * self.c.T + self.a.T)


def _scales(grid: TimeGrid) -> tuple[Tensor, Tensor]:
    """The ratio sigma' / sigma and C = -alpha' phi_1, a number a step, (N, 1) each."""
    ratio, C = grid.sigma[1:] / grid.sigma[:-1], -grid.alpha[1:] * torch.expm1(-grid.lam.diff())
    return ratio[:, None], C[:, None]


@torch.no_grad()
def _dpmpp_multipliers(setting: Setting, grid: TimeGrid, kept: int) -> Tensor:
    """What DPM-Solver++(3M), traced a step at a time, gives each prediction, over C: (K, N)."""
    c = torch.zeros(kept, grid.num_steps, dtype=torch.float64)
    method = DPMpp3M(setting, lower_order_final=False)
    for n, scale in enumerate(_scales(grid)[1]):
        order = min(n + 1, kept, method.order)
        basis = torch.eye(order, dtype=torch.float64)
        weights = method.update(torch.zeros_like(basis[0]), n, grid, basis.unbind())
        c[:order, n] = weights.flip(0) / scale
    return c
