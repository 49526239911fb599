"""AYS: published lists of noise levels, interpolated to any number of steps."""

from torch import Tensor

from solverbench.errors import SolverBenchError
from solverbench.schedule import NoiseSchedule
from solverbench.solvers.base import choice
from solverbench.solvers.schedules import ScheduleOptimiser, ScheduleTask
from solverbench.stored_schedules import STORED_SIGMAS, snapped, stored

MODELS = ("sd15", "sdxl", "svd", "deepfloyd-if")
TOLERANCE = 0.03  # of the first noise level: lists of other models differ by far more


class AYS(ScheduleOptimiser):
    """Align Your Steps: 10-step lists that minimise a bound on the divergence of the sampler.

    Other lengths are interpolated, linearly in log sigma over i / N. The optimisation itself was
    never published, so models without a list have none. The last noise level stays as listed;
    some user interfaces replace it by 0.

    Args:
        model: whose list: ``sd15``, ``sdxl``, ``svd`` or ``deepfloyd-if``.
    """

    source = "Sabour et al. (2024), Align Your Steps, the authors' 10-step lists"
    title = "AYS"

    def __init__(self, *, model: str = "sd15") -> None:
        self.model = choice("model", model, MODELS)

    def check(self, task: ScheduleTask) -> None:
        """Look the list up."""
        self.times(task)

    def times(self, task: ScheduleTask) -> Tensor:
        """The list of the model at ``num_steps``."""
        return listed_times(f"ays-{self.model}", task)


def listed_times(name: str, task: ScheduleTask) -> Tensor:
    """A stored list of noise levels as times of the task's noise schedule.

    Args:
        name: key of ``STORED_SIGMAS``.
        task: what it is for.

    Returns:
        (N + 1,), float64, strictly decreasing; the first is T, the last ``task.t_min`` where the
        list ends within 5 percent of it, else where the list ends.

    Raises:
        SolverBenchError: where the list starts at another noise level or has another length.
    """
    schedule, lists = task.setting.noise_schedule, STORED_SIGMAS[name][0]
    first = next(iter(lists.values()))[0]
    if abs(first / float(schedule.shat(schedule.t_max)) - 1) > TOLERANCE:
        raise SolverBenchError(_other_range(name, first, schedule))
    try:
        sigma = stored(name, task.num_steps)
    except ValueError as error:
        raise SolverBenchError(str(error)) from error
    return snapped(schedule.inverse_lam(-sigma.log()), schedule.t_max, task.t_min)


def _other_range(name: str, first: float, schedule: NoiseSchedule) -> str:
    family = name.partition("-")[0]
    known = {key: next(iter(lists.values()))[0] for key, (lists, _, _) in STORED_SIGMAS.items()}
    lists = ", ".join(f"{key} ({s:g})" for key, s in known.items() if key.startswith(family))
    start = float(schedule.shat(schedule.t_max))
    return (
        f"list {name} starts at sigma {first:g}, this noise schedule at {start:g}; "
        f"lists and their first sigma: {lists}"
    )
