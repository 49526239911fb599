"""GITS against golden costs and paths, and its stored lists."""

import itertools
import json
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from solverbench.errors import SolverBenchError
from solverbench.schedule import VE, NoiseSchedule, VPDiscrete, nodes, wrapped_between
from solverbench.solvers import Setting
from solverbench.solvers.gits import GITS, GITSSD, cheapest_path, jump_costs
from solverbench.solvers.schedules import ScheduleTask
from tests.problems import DATA, edm, gap, line

VECTORS = json.loads((DATA / "schedule-optimisers.json").read_text())


class Coordinates:
    """The mixture on a line, for each of 8 coordinates on its own."""

    t_floor, state_shape = 1e-5, (8, 1, 1)

    def __init__(self, schedule: NoiseSchedule, output: str = "x0") -> None:
        self.schedule, self.output = schedule, output
        self.line, _ = line(output=output)
        self.line.schedule = schedule
        self.batches: list[int] = []

    def evaluate(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        self.batches.append(len(x))
        return self.line.raw(x.reshape(-1, 1, 1, 1), t, None).view_as(x)


def quasi_normal(seeds: Sequence[int]) -> Tensor:
    b, k = torch.tensor(list(seeds))[:, None] + 1.0, torch.arange(1, 9)[None].double()
    share = (b.double() * 0.6180339887498949 + k * 0.4142135623730951) % 1
    return torch.special.ndtri(share)[:, :, None, None]


def task(
    schedule: NoiseSchedule, num_steps: int, output: str = "x0", t_min: float | None = None
) -> ScheduleTask:
    return ScheduleTask(
        setting=Setting(schedule, num_steps, output),  # type: ignore[arg-type]
        num_steps=num_steps,
        t_min=schedule.t_min if t_min is None else t_min,
        backbone=Coordinates(schedule, output),  # type: ignore[arg-type]
        noise=quasi_normal,
        condition=lambda seeds: None,
    )


def optimiser(metric: str = "dev", gamma: float = 1.15) -> GITS:
    return GITS(num_warmup=16, num_fine=11, metric=metric, gamma=gamma)


GOLDEN = VECTORS["gits"]
STAMPS = torch.tensor(GOLDEN["timestamps"], dtype=torch.float64)


def test_fine_grid_is_that_of_the_reference() -> None:
    """1e-11: the reference is printed with 12 digits."""
    assert gap(optimiser().fine_times(task(VE(), 4)), STAMPS) < 1e-11


@pytest.mark.parametrize(("metric", "row"), [("l2", 0), ("dev", 0), ("dev", 3)])
def test_costs_of_jumps_meet_the_reference(metric: str, row: int) -> None:
    """1e-9 relative to the largest cost of the row."""
    chosen = task(VE(), 4)
    cost = optimiser(metric).cost(chosen, optimiser().fine_times(chosen))
    wanted = torch.tensor(GOLDEN[f"cost_{metric}_row{row}"], dtype=torch.float64)
    assert gap(cost[row], wanted) < 1e-9


@pytest.mark.parametrize("key", GOLDEN["paths"])
@pytest.mark.parametrize(
    ("schedule", "output"), [(VE(), "x0"), (wrapped_between(0.002, 80.0), "eps")]
)
def test_paths_meet_the_reference_in_every_frame(
    key: str, schedule: NoiseSchedule, output: str
) -> None:
    metric, gamma = key.split("/gamma")
    chosen, method = task(schedule, 4, output), optimiser(metric, float(gamma))
    t, fine = method.times(chosen), method.fine_times(chosen)
    assert torch.equal(t, fine[GOLDEN["paths"][key]])
    assert float(t[0]) == schedule.t_max
    assert float(t[-1]) == schedule.t_min
    assert torch.equal(nodes(schedule, 4, t.tolist()), t)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 6])
@pytest.mark.parametrize("gamma", [0.8, 1.2])
def test_dynamic_programme_finds_the_best_of_all_paths(num_steps: int, gamma: float) -> None:
    rng = torch.Generator().manual_seed(num_steps)
    cost = torch.randn(7, 7, generator=rng, dtype=torch.float64)  # costs may be negative

    def total(path: list[int]) -> float:
        return sum(
            gamma**k * float(cost[i, j]) for k, (i, j) in enumerate(itertools.pairwise(path))
        )

    every = [[0, *inner, 6] for inner in itertools.combinations(range(1, 6), num_steps - 1)]
    assert cheapest_path(cost, num_steps, gamma) == min(every, key=total)


def test_ties_go_to_the_smallest_place() -> None:
    assert cheapest_path(torch.zeros(6, 6), 3, 1.0) == [0, 1, 2, 5]


def test_impossible_numbers_of_jumps_are_refused() -> None:
    with pytest.raises(ValueError, match="allow 1 to 3 jumps"):
        cheapest_path(torch.zeros(4, 4), 4, 1.0)


@pytest.mark.parametrize("metric", ["l1", "l2", "dev"])
def test_straight_trajectories_cost_nothing(metric: str) -> None:
    """1e-12: rounding of states of size 10."""
    shat, direction = torch.tensor([9.0, 4.0, 1.0, 0.5]).double(), torch.randn(3, 5).double()
    y = shat[:, None, None] * direction
    cost = jump_costs(y, direction.expand(3, 3, 5), shat, metric)
    assert float(cost.abs().max()) < 1e-12


def test_warm_up_runs_in_chunks_that_change_rounding_only() -> None:
    chosen = task(VE(), 3)
    method = GITS(num_warmup=150, num_fine=6)
    fine = method.fine_times(chosen)
    whole = method.cost(chosen, fine)
    batches = chosen.backbone.batches  # type: ignore[attr-defined]
    assert [batches[5 * k] for k in range(3)] == [64, 64, 22]
    assert len(batches) == 3 * 5
    parts = [
        GITS(num_warmup=75, num_fine=6).cost(shifted, fine)
        for shifted in (chosen, _later(chosen, 75))
    ]
    assert gap(whole, (parts[0] + parts[1]) / 2) < 1e-12


def _later(chosen: ScheduleTask, first: int) -> ScheduleTask:
    return ScheduleTask(
        **{**vars(chosen), "noise": lambda seeds: quasi_normal([first + s for s in seeds])}
    )


def test_conditions_follow_the_seeds_and_the_end_is_that_of_the_task() -> None:
    problem, seen = edm(), []

    def noise(seeds: Sequence[int]) -> Tensor:
        return problem.noise[[s % len(problem.noise) for s in seeds]]

    chosen = ScheduleTask(
        Setting(problem.schedule, 5), 5, 0.01, problem, noise, lambda seeds: seen.append(seeds)
    )
    t = GITS(num_warmup=70, num_fine=13).times(chosen)
    assert [list(seeds) for seeds in seen] == [list(range(64)), list(range(64, 70))]
    assert float(t[-1]) == 0.01
    assert not t.requires_grad
    assert len(nodes(problem.schedule, 5, t.tolist())) == 6


def test_more_steps_than_fine_times_are_refused() -> None:
    chosen = task(VE(), 11)
    for ask in (optimiser().times, optimiser().check):
        with pytest.raises(SolverBenchError, match="num_fine must be at least 12"):
            ask(chosen)
    optimiser().check(task(VE(), 10))
    assert chosen.backbone.batches == []  # type: ignore[attr-defined]
    assert len(optimiser().times(task(VE(), 10))) == 11


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="dev, l1, l2"):
        GITS(metric="l3")
    with pytest.raises(ValueError, match="teacher_order is 5"):
        GITS(teacher_order=5)
    with pytest.raises(ValueError, match="num_warmup is at least 1"):
        GITS(num_warmup=0)


SD = VPDiscrete(0.00085, 0.012)


@pytest.mark.parametrize("solver", ["ipndm", "dpmpp"])
def test_stable_diffusion_takes_the_stored_lists(solver: str) -> None:
    """0.2 percent: sigma is printed with three digits at its small end."""
    lists = VECTORS["tables"][f"gits_sd_{solver}_sigma"]
    assert len(lists) == 9
    for num, wanted in lists.items():
        t = GITSSD(solver=solver).times(task(SD, int(num), "eps"))
        assert torch.equal(nodes(SD, int(num), t.tolist()), t)
        assert (float(t[0]), float(t[-1])) == (1.0, 1e-3)
        assert torch.allclose(SD.shat(t), torch.tensor(wanted).double(), rtol=2e-3)


def test_stored_times_are_those_the_paper_prints() -> None:
    """Half a unit of the fourth decimal, and the rounding of sigma."""
    for num, wanted in VECTORS["tables"]["gits_sd_paper_t"].items():
        t = GITSSD().times(task(SD, int(num), "eps"))
        assert float((t - torch.tensor(wanted).double()).abs().max()) < 1e-4


def test_stored_lists_say_what_they_are_not_for() -> None:
    for ask in (GITSSD().times, GITSSD().check):
        with pytest.raises(SolverBenchError, match=r"starts at sigma 14\.6146, this noise"):
            ask(task(VE(), 5))
        with pytest.raises(SolverBenchError, match="has no list of 12 steps"):
            ask(task(SD, 12, "eps"))
    GITSSD().check(task(SD, 11, "eps"))
    with pytest.raises(ValueError, match="ipndm, dpmpp"):
        GITSSD(solver="heun")
