"""AYS: the published lists and how they are interpolated."""

import json

import pytest
import torch

from solverbench.errors import SolverBenchError
from solverbench.schedule import VE, NoiseSchedule, VPDiscrete, nodes
from solverbench.solvers import Setting, sample
from solverbench.solvers.ays import AYS
from solverbench.solvers.dpmpp import DPMpp2M
from solverbench.solvers.schedules import ScheduleTask
from tests.problems import DATA, edm_ve, gap, latent

LISTS = json.loads((DATA / "schedule-optimisers.json").read_text())["tables"]["ays_10step"]
SD = VPDiscrete(0.00085, 0.012)
FRAMES: dict[str, NoiseSchedule] = {
    "sd15": SD,
    "sdxl": SD,
    "svd": VE(0.002, 700.0),
    "deepfloyd-if": VE(0.006, 160.41),
}
KEYS = {"deepfloyd-if": "deepfloyd_if_stage1_sigma"}


def task(schedule: NoiseSchedule, num_steps: int, t_min: float | None = None) -> ScheduleTask:
    """AYS asks no network; the exact problem stands in."""
    end = schedule.t_min if t_min is None else t_min
    setting = Setting(schedule, num_steps)
    return ScheduleTask(setting, num_steps, end, edm_ve(), lambda seeds: None, lambda seeds: None)  # type: ignore[arg-type, return-value]


def listed(model: str) -> torch.Tensor:
    return torch.tensor(LISTS[KEYS.get(model, f"{model}_sigma")], dtype=torch.float64)


@pytest.mark.parametrize("model", FRAMES)
def test_ten_steps_are_the_published_list(model: str) -> None:
    """1e-6: the ends are those of the schedule, which the list prints with ten digits."""
    schedule = FRAMES[model]
    t = AYS(model=model).times(task(schedule, 10))
    assert torch.allclose(schedule.shat(t), listed(model), rtol=1e-6)
    assert (float(t[0]), float(t[-1])) == (schedule.t_max, schedule.t_min)


@pytest.mark.parametrize("model", FRAMES)
@pytest.mark.parametrize("num", [1, 4, 7, 20])
def test_other_lengths_are_decreasing_with_the_same_ends(model: str, num: int) -> None:
    schedule = FRAMES[model]
    t = AYS(model=model).times(task(schedule, num))
    assert torch.equal(nodes(schedule, num, t.tolist()), t)
    assert (float(t[0]), float(t[-1])) == (schedule.t_max, schedule.t_min)


def test_interpolation_is_linear_in_log_sigma() -> None:
    """1e-6: as above. Five steps take every second level, twenty their geometric means."""
    sigma = listed("sd15")
    half, double = (SD.shat(AYS().times(task(SD, num))) for num in (5, 20))
    assert gap(half, sigma[::2]) < 1e-6
    assert gap(double[1::2], (sigma[1:] * sigma[:-1]).sqrt()) < 1e-6


def test_list_ends_where_it_ends_if_the_task_wants_another_end() -> None:
    t = AYS().times(task(SD, 10, t_min=0.01))
    assert float(SD.shat(t[-1])) == pytest.approx(float(listed("sd15")[-1]), rel=1e-9)


@pytest.mark.parametrize("schedule", [VE(), VPDiscrete(0.0015, 0.0195)])
def test_lists_of_other_models_are_refused(schedule: NoiseSchedule) -> None:
    with pytest.raises(SolverBenchError, match=r"ays-sd15 \(14\.6146\).*ays-svd \(700\)"):
        AYS().times(task(schedule, 10))
    with pytest.raises(SolverBenchError, match=r"ays-sd15 \(14\.6146\)"):
        AYS().check(task(schedule, 10))


def test_unknown_models_are_refused() -> None:
    with pytest.raises(ValueError, match="sd15, sdxl, svd, deepfloyd-if"):
        AYS(model="flux")


def test_the_times_serve_a_solver() -> None:
    problem = latent("sd")
    t = AYS().times(task(problem.schedule, 10))
    solver = DPMpp2M(Setting(problem.schedule, 10, problem.output), schedule=t.tolist())
    final = sample(problem, solver.tableau(), problem.noise, problem.condition)
    assert bool(torch.isfinite(final).all())
