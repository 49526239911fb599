"""GITS: the steps of least cost through a fine grid, found by a dynamic programme."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from solverbench.errors import SolverBenchError
from solverbench.schedule import Prediction, nodes
from solverbench.solvers.ays import listed_times
from solverbench.solvers.base import choice
from solverbench.solvers.ipndm import IPNDM1, IPNDM2, IPNDM3, IPNDM4
from solverbench.solvers.schedules import ScheduleOptimiser, ScheduleTask
from solverbench.solvers.tableau import integrate
from solverbench.stored_schedules import snapped

TEACHERS = {1: IPNDM1, 2: IPNDM2, 3: IPNDM3, 4: IPNDM4}
METRICS = ("dev", "l1", "l2")
BATCH = 64  # samples in a network call, at most
CHUNK = 2**25  # numbers in a chunk of trajectories, at most: 256 MiB


class GITS(ScheduleOptimiser):
    """Warm-up trajectories on a fine grid give a cost for every jump; the cheapest N are taken.

    Args:
        num_warmup: B, trajectories; their seeds are 0 .. B - 1.
        num_fine: n, times of the fine grid (``edm``, rho 7).
        metric: cost of a jump: ``dev``, ``l1`` or ``l2``.
        gamma: weight of later jumps; above 1 stresses the end.
        teacher_order: order of the iPNDM teacher, 1 to 4.

    Source: Chen et al. (2024), as in solvers.md section 5.1. Differs: the fine grid and teacher
    are the same for every model; there is no search for a second time under an analytical first
    step.
    """

    source = "Chen et al. (2024), On the Trajectory Regularity of ODE-based Diffusion Sampling"
    title = "GITS"

    def __init__(
        self,
        *,
        num_warmup: int = 256,
        num_fine: int = 61,
        metric: str = "dev",
        gamma: float = 1.15,
        teacher_order: int = 4,
    ) -> None:
        if num_warmup < 1 or num_fine < 2 or not gamma > 0:
            raise ValueError(
                "num_warmup is at least 1, num_fine at least 2, gamma positive; got "
                f"{num_warmup}, {num_fine}, {gamma}"
            )
        if teacher_order not in TEACHERS:
            raise ValueError(f"teacher_order is {teacher_order}; allowed: 1, 2, 3, 4")
        self.num_warmup, self.num_fine, self.gamma = num_warmup, num_fine, gamma
        self.metric, self.teacher_order = choice("metric", metric, METRICS), teacher_order

    def check(self, task: ScheduleTask) -> None:
        """Refuse more steps than the fine grid has."""
        if task.num_steps > self.num_fine - 1:
            raise SolverBenchError(
                f"gits takes {task.num_steps} steps from {self.num_fine} times; "
                f"num_fine must be at least {task.num_steps + 1}"
            )

    def times(self, task: ScheduleTask) -> Tensor:
        """Times of the fine grid on the cheapest path."""
        self.check(task)
        fine = self.fine_times(task)
        path = cheapest_path(self.cost(task, fine), task.num_steps, self.gamma)
        return fine[path]

    def fine_times(self, task: ScheduleTask) -> Tensor:
        """The fine grid, (n,)."""
        schedule = task.setting.noise_schedule
        fine = nodes(schedule, self.num_fine - 1, "edm", task.t_min, rho=7.0)
        return snapped(fine, schedule.t_max, task.t_min)

    def cost(self, task: ScheduleTask, fine: Tensor) -> Tensor:
        """Mean cost of every jump on the fine grid (n,): (n, n), float64, on the CPU."""
        shat = task.setting.noise_schedule.shat(fine)
        total = torch.zeros(len(fine), len(fine), dtype=torch.float64)
        for y, slope in self._trajectories(task, fine):
            total += jump_costs(y, slope, shat.to(y.device), self.metric).cpu()
        if not bool(torch.isfinite(total).all()):
            raise SolverBenchError(
                "gits: the warm-up trajectories hold numbers that are not finite"
            )
        return total / self.num_warmup

    @torch.no_grad()
    def _trajectories(self, task: ScheduleTask, fine: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of y = x / alpha, (n, B, D), and its slopes d y / d shat, (n - 1, B, D)."""
        setting = replace(task.setting, nfe=len(fine) - 1)
        teacher = TEACHERS[self.teacher_order](setting, schedule=fine.tolist())
        size = len(fine) * int(np.prod(task.backbone.state_shape))
        rows = max(1, min(BATCH, CHUNK // size))
        for first in range(0, self.num_warmup, rows):
            seeds = range(first, min(first + rows, self.num_warmup))
            y: list[Tensor] = []
            slope: list[Tensor] = []

            def keep(seen: Prediction, y: list[Tensor] = y, slope: list[Tensor] = slope) -> None:
                y.append((seen.x / seen.model[0]).flatten(1))
                slope.append(seen.eps.flatten(1))

            noise, condition = task.noise(seeds).double(), task.condition(seeds)
            end = integrate(teacher, task.backbone, noise, condition, watch=keep)
            y.append((end / setting.noise_schedule.alpha(fine[-1])).flatten(1))
            yield torch.stack(y), torch.stack(slope)


class GITSSD(ScheduleOptimiser):
    """GITS for Stable Diffusion: the authors' stored lists of 3 to 11 steps.

    Args:
        solver: whose lists: ``ipndm`` or ``dpmpp``.
    """

    source = "Chen et al. (2024), GITS, appendix D.1 and the lists of the authors' code"
    title = "GITS"

    def __init__(self, *, solver: str = "ipndm") -> None:
        self.solver = choice("solver", solver, ("ipndm", "dpmpp"))

    def check(self, task: ScheduleTask) -> None:
        """Look the list up."""
        self.times(task)

    def times(self, task: ScheduleTask) -> Tensor:
        """The stored list of ``num_steps``."""
        return listed_times("gits-sd" if self.solver == "ipndm" else "gits-sd-dpmpp", task)


def jump_costs(y: Tensor, slope: Tensor, shat: Tensor, metric: str) -> Tensor:
    """Cost of every Euler jump between points of trajectories, summed over samples.

    Args:
        y: points in the VE form, (n, B, D), float64.
        slope: noise predictions there, (n - 1, B, D).
        shat: noise levels, (n,), decreasing.
        metric: ``l1`` and ``l2`` measure the distance between landing point and trajectory;
            ``dev`` how much farther the landing point is from the trajectory's chord, which may
            be negative.

    Returns:
        c(i, j) for i < j, 0 elsewhere, (n, n).

    Source: Chen et al. (2024), as in solvers.md section 5.1.
    """
    num = len(y)
    cost = y.new_zeros(num, num)
    away = _chord_distance(y, y)  # (n, B)
    away[-1] = 0
    for i in range(num - 1):  # a row at a time: memory of one trajectory
        landed = y[i] + (shat[i + 1 :] - shat[i])[:, None, None] * slope[i]  # (n - i - 1, B, D)
        if metric == "dev":
            each = _chord_distance(landed, y) - away[i + 1 :]
        else:
            each = (landed - y[i + 1 :]).norm(p=int(metric[1]), dim=2)
        cost[i, i + 1 :] = each.sum(1)
    return cost


def _chord_distance(points: Tensor, y: Tensor) -> Tensor:
    """Distance of points (m, B, D) from the line through first and last of y (n, B, D): (m, B)."""
    along = torch.nn.functional.normalize(y[-1] - y[0], dim=1)
    gap = points - y[-1]
    across = gap - (gap * along).sum(2, keepdim=True) * along
    return across.square().sum(2).sqrt()


def cheapest_path(cost: Tensor, num_steps: int, gamma: float) -> list[int]:
    """The cheapest way from 0 to n - 1 in exactly N jumps.

    V[j][1] = c(j, n - 1); V[j][k] = min over j < i < n - 1 of c(j, i) + gamma V[i][k - 1]. Ties
    go to the smallest i.

    Args:
        cost: c(i, j), (n, n); used above the diagonal.
        num_steps: N, from 1 to n - 1.
        gamma: weight of later jumps.

    Returns:
        N + 1 increasing places, from 0 to n - 1.

    Raises:
        ValueError: where N jumps do not fit.

    Source: Chen et al. (2024), as in solvers.md section 5.1.
    """
    num = len(cost)
    if not 1 <= num_steps <= num - 1:
        raise ValueError(f"{num} points allow 1 to {num - 1} jumps; got {num_steps}")
    c = cost.double().cpu().numpy()
    jumps = np.where(np.triu(np.ones((num, num)), 1) > 0, c, np.inf)
    jumps[:, -1] = np.inf  # the last point is reached by the last jump alone
    value, choices = c[:, -1].copy(), []
    value[-1] = np.inf
    for _ in range(num_steps - 1):
        whole = jumps + gamma * value
        choices.append(whole.argmin(1))
        value = whole.min(1)
    path = [0]
    for chosen in reversed(choices):
        path.append(int(chosen[path[-1]]))
    return [*path, num - 1]
