"""DMN: times that minimise a bound on the error of a multistep solver; no network is asked."""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solverbench.errors import SolverBenchError
from solverbench.schedule import NoiseSchedule, VPDiscrete, nodes
from solverbench.solvers.ays import listed_times
from solverbench.solvers.base import choice
from solverbench.solvers.schedules import ScheduleOptimiser, ScheduleTask
from solverbench.stored_schedules import STORED_SIGMAS, STORED_TIMES, snapped

Array = NDArray[np.float64]
ORDER = 3
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(40)  # exact to rounding on steps of every grid
STARTS = {"logsnr": "logsnr", "time": "time-uniform"}
STABLE_STEPS = {1: 6, 2: 5}  # by power: up to here the optimum does not depend on the machine


class DMN(ScheduleOptimiser):
    """Minimises an upper bound of the discretisation error over the interior lambdas.

    The bound is not smooth. Beyond 6 steps (5 with latent weights) rounding decides which local
    optimum is found, so printed lists are preferred there; other lengths and ranges are optimised
    for any N.

    Args:
        power: exponent q of the model-error term sigma^q / alpha: 1 pixel models, 2 latent ones.
        start: where the search begins: ``logsnr`` (pixel) or ``time`` (latent), uniform in it.
        stored: beyond that number of steps take the printed list, where one was made for the
            same noise levels, power and start.

    Source: Xue et al. (2024), as in solvers.md section 5.2. Differs: integrals by quadrature.
    """

    source = "Xue et al. (2024), Accelerating Diffusion Sampling with Optimized Time Steps"
    title = "DMN"

    def __init__(self, *, power: int = 1, start: str = "logsnr", stored: bool = True) -> None:
        if power not in (1, 2):
            raise ValueError(f"power is {power}; allowed: 1 (pixel models), 2 (latent models)")
        self.power, self.start, self.stored = power, choice("start", start, STARTS), stored

    def check(self, task: ScheduleTask) -> None:
        """Refuse what needs a search where scipy is missing."""
        if task.num_steps > 1 and self._printed(task) is None:
            _search()

    def times(self, task: ScheduleTask) -> Tensor:
        """The printed list, or the optimum that is found."""
        listed = self._printed(task)
        if listed is not None:
            return listed
        schedule = task.setting.noise_schedule
        first = nodes(schedule, task.num_steps, STARTS[self.start], task.t_min)
        lam = optimise(schedule.lam(first).numpy(), self.power)
        t = snapped(schedule.inverse_lam(torch.from_numpy(lam)), schedule.t_max, task.t_min)
        if not bool((t.diff() < 0).all()):
            raise SolverBenchError(
                f"dmn found no decreasing times for {task.num_steps} steps; use fewer steps"
            )
        return t

    def _printed(self, task: ScheduleTask) -> Tensor | None:
        """The list that was made for this task and is wanted, None where there is none."""
        if not self.stored or task.num_steps <= STABLE_STEPS[self.power]:
            return None
        schedule, num = task.setting.noise_schedule, task.num_steps
        ends = [float(schedule.shat(t)) for t in (schedule.t_max, task.t_min)]
        if (self.power, self.start) == (1, "logsnr"):
            lists, *_ = STORED_SIGMAS["dmn-edm"]
            fits = num in lists and np.allclose(ends, [lists[num][0], lists[num][-1]], rtol=1e-3)
            return listed_times("dmn-edm", task) if fits else None
        if (self.power, self.start) == (2, "time"):
            for lists, betas, _ in STORED_TIMES.values():
                if num in lists:
                    own = VPDiscrete(*betas)
                    t = torch.tensor(lists[num], dtype=torch.float64)
                    if np.allclose(ends, own.shat(t[[0, -1]]), rtol=1e-3):
                        return _moved(t, own, task)
        return None


def _moved(t: Tensor, own: NoiseSchedule, task: ScheduleTask) -> Tensor:
    """Times of one noise schedule as times of the task's, at the same noise levels."""
    schedule = task.setting.noise_schedule
    return snapped(schedule.inverse_lam(own.lam(t)), schedule.t_max, task.t_min)


def error_bound(lam: Array, power: int = 1) -> float:
    """Upper bound of a multistep solver's error on a grid.

    With J_{s,k} the integral of e^l l_k(l) over step s, l_k the Lagrange basis on the nodes that
    step uses, and w_k = sigma_k^q / alpha_k: first and last step count by |w_s J_{s,s}|, the next
    two steps of short grids by their norm over k, all other steps by |sum_s w_k J_{s,k}| a node.

    Args:
        lam: log(alpha / sigma), (N + 1,), increasing.
        power: q.

    Returns:
        The bound, dimensionless.

    Source: Xue et al. (2024), as in solvers.md section 5.2.
    """
    num = len(lam) - 1
    terms = _integrals(lam) * _weights(lam[:-1], power)  # (N, N): step s, node k
    inner = np.arange(1, max(num - 1, 1))
    single = inner[inner < (3 if num <= 7 else 0)]
    joint = inner[len(single) :]
    ends = np.abs(terms.diagonal()[sorted({0, num - 1})]).sum()
    norms = np.sqrt(np.square(terms[single]).sum(1)).sum()
    return float(ends + norms + np.abs(terms[joint].sum(0)).sum())


def _weights(lam: Array, power: int) -> Array:
    """sigma^q / alpha of a variance-preserving process."""
    weights: Array = (1 + np.exp(2 * lam)) ** (-power / 2) * np.sqrt(1 + np.exp(-2 * lam))
    return weights


def _integrals(lam: Array) -> Array:
    """J_{s,k}: the integral of e^l l_k(l) over step s, (N, N); 0 for nodes that s does not use."""
    num, h = len(lam) - 1, np.diff(lam)
    step, lag = np.arange(num), np.arange(ORDER)
    used = lag < np.minimum(step + 1, num - step)[:, None]  # (N, 3): a low start and a low end
    place = np.where(used, step[:, None] - lag, step[:, None])
    node = lam[place]
    active = used[:, :, None] & used[:, None, :] & (lag[:, None] != lag)  # (N, 3, 3)
    gap = np.where(active, node[:, :, None] - node[:, None, :], 1.0)
    at = lam[:-1, None] + h[:, None] * (POINTS + 1) / 2  # (N, 40)
    factor = (at[:, None, None] - node[:, None, :, None]) / gap[..., None]
    basis = np.where(active[..., None], factor, 1.0).prod(2)  # (N, 3, 40)
    scale = np.exp(at) * WEIGHTS * h[:, None] / 2
    found = np.zeros((num, num))
    np.add.at(found, (step[:, None], place), used * (basis * scale[:, None]).sum(2))
    return found


def optimise(lam: Array, power: int = 1) -> Array:
    """Minimise the bound over the interior nodes.

    Args:
        lam: where to begin, (N + 1,), increasing.
        power: q.

    Returns:
        (N + 1,), same ends.

    Raises:
        SolverBenchError: where scipy is not installed.

    Source: Xue et al. (2024): trust-region method under linear constraints.
    """
    if len(lam) < 3:
        return lam
    LinearConstraint, minimize = _search()

    def bound(interior: Array) -> float:
        return error_bound(np.concatenate([lam[:1], interior, lam[-1:]]), power)

    steps = np.eye(len(lam) - 1, len(lam) - 2) - np.eye(len(lam) - 1, len(lam) - 2, k=-1)
    lowest = np.zeros(len(steps))
    lowest[0], lowest[-1] = lam[0], -lam[-1]
    ordered = LinearConstraint(steps, lowest, np.full(len(steps), np.inf))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the quasi-Newton update skips flat steps, and says so
        found: Any = minimize(bound, lam[1:-1], method="trust-constr", constraints=[ordered])
    return np.concatenate([lam[:1], found.x, lam[-1:]])


def _search() -> tuple[Any, Any]:
    """LinearConstraint and minimize of scipy, which is optional."""
    try:
        from scipy.optimize import LinearConstraint, minimize
    except ImportError as error:
        message = "dmn needs scipy: pip install 'solverbench[schedules]'"
        raise SolverBenchError(message) from error
    return LinearConstraint, minimize
