"""DMN against printed bounds and schedules."""

import json
import sys

import numpy as np
import pytest
import torch

from solverbench.errors import SolverBenchError
from solverbench.schedule import VE, NoiseSchedule, VPDiscrete, VPLinear, nodes, wrapped_between
from solverbench.solvers import Setting
from solverbench.solvers.dmn import DMN, error_bound, optimise
from solverbench.solvers.schedules import ScheduleTask
from tests.problems import DATA, DISCRETE, edm_ve

TABLES = json.loads((DATA / "schedule-optimisers.json").read_text())["tables"]
LATENT = {name: VPDiscrete(*betas) for name, betas in DISCRETE.items()}


def task(schedule: NoiseSchedule, num_steps: int, t_min: float | None = None) -> ScheduleTask:
    """DMN asks no network; the exact problem stands in."""
    end = schedule.t_min if t_min is None else t_min
    setting = Setting(schedule, num_steps)
    return ScheduleTask(setting, num_steps, end, edm_ve(), lambda seeds: None, lambda seeds: None)  # type: ignore[arg-type, return-value]


def printed(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("num", "wanted"), TABLES["dmn_edm_objective"]["initial"].items())
def test_bound_of_the_initial_grid_is_the_printed_one(num: str, wanted: float) -> None:
    """Half a unit of the third decimal, as printed."""
    lam = VE().lam(nodes(VE(), int(num))).numpy()
    assert error_bound(lam) == pytest.approx(wanted, abs=5.1e-4)


@pytest.mark.parametrize("power", [1, 2])
def test_bound_of_one_and_two_steps_counts_their_ends_alone(power: int) -> None:
    """Steps of order 1: the integral of e^l is a difference."""
    for lam in (np.array([-1.0, 2.0]), np.array([-1.0, 0.5, 2.0])):
        scales = (1 + np.exp(-2 * lam)) ** -0.5, (1 + np.exp(2 * lam)) ** -0.5
        wanted = (scales[1] ** power / scales[0])[:-1] * np.diff(np.exp(lam))
        assert error_bound(lam, power) == pytest.approx(wanted.sum(), rel=1e-13)


@pytest.mark.parametrize("num", [3, 4, 5, 6])
def test_pixel_optimum_is_the_printed_one(num: int) -> None:
    """Half a unit of the fourth decimal, and the tolerance of the search."""
    t = DMN().times(task(VE(), num))
    assert float((t - printed(TABLES["dmn_edm_sigma"][str(num)])).abs().max()) < 1e-4
    bound = error_bound(VE().lam(t).numpy())
    assert bound == pytest.approx(TABLES["dmn_edm_objective"]["optimised"][str(num)], abs=1e-3)


@pytest.mark.parametrize("name", ["ldm", "sd"])
@pytest.mark.parametrize("num", [4, 5])
def test_latent_optimum_is_the_printed_one(name: str, num: int) -> None:
    """Half a unit of the fourth decimal, and the tolerance of the search."""
    t = DMN(power=2, start="time").times(task(LATENT[name], num))
    assert float((t - printed(TABLES[f"dmn_{name}_t"][str(num)])).abs().max()) < 1e-4
    bound = error_bound(LATENT[name].lam(t).numpy(), 2)
    assert bound == pytest.approx(TABLES[f"dmn_{name}_objective"][str(num)], abs=1e-3)


@pytest.mark.parametrize("name", ["ldm", "sd"])
def test_bound_of_latent_lists_is_the_printed_one(name: str) -> None:
    """1e-3 relative: four decimals of the times, of which the last ones are small."""
    for num, wanted in TABLES[f"dmn_{name}_objective"].items():
        lam = LATENT[name].lam(printed(TABLES[f"dmn_{name}_t"][num])).numpy()
        assert error_bound(lam, 2) == pytest.approx(wanted, rel=1e-3)


def test_six_latent_steps_find_a_bound_as_low_as_the_printed_one() -> None:
    """The optimum is flat there: times differ from the printed ones by 2e-3."""
    schedule = LATENT["ldm"]
    first = schedule.lam(nodes(schedule, 6, "time-uniform")).numpy()
    found = error_bound(optimise(first, 2), 2)
    assert found < TABLES["dmn_ldm_objective"]["6"] + 1e-3


@pytest.mark.parametrize("num", [7, 8, 10])
@pytest.mark.parametrize("schedule", [VE(), wrapped_between(0.002, 80.0)])
def test_printed_list_is_taken_where_noise_levels_match(
    num: int, schedule: NoiseSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    t = DMN().times(task(schedule, num))
    assert torch.allclose(schedule.shat(t), printed(TABLES["dmn_edm_sigma"][str(num)]), rtol=1e-9)
    assert torch.equal(nodes(schedule, num, t.tolist()), t)


@pytest.mark.parametrize("name", ["ldm", "sd"])
@pytest.mark.parametrize("num", [6, 7])
def test_printed_times_are_taken_with_latent_options(
    name: str, num: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    t = DMN(power=2, start="time").times(task(LATENT[name], num))
    assert torch.allclose(t, printed(TABLES[f"dmn_{name}_t"][str(num)]), rtol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "t_min", "options"),
    [
        (VPLinear(), None, {}),
        (VE(), 0.01, {}),
        (VE(), None, {"stored": False}),
        (LATENT["ldm"], None, {}),
    ],
)
def test_elsewhere_the_search_decides(
    schedule: NoiseSchedule, t_min: float | None, options: dict[str, bool]
) -> None:
    chosen = task(schedule, 7, t_min)
    t = DMN(**options).times(chosen)  # type: ignore[arg-type]
    assert torch.equal(nodes(schedule, 7, t.tolist()), t)
    assert (float(t[0]), float(t[-1])) == (schedule.t_max, chosen.t_min)
    uniform = nodes(schedule, 7, t_min=chosen.t_min)
    found, initial = (error_bound(schedule.lam(grid).numpy()) for grid in (t, uniform))
    assert found < 0.6 * initial


@pytest.mark.parametrize("num", [1, 2, 8])
def test_every_number_of_steps_gives_decreasing_times(num: int) -> None:
    t = DMN().times(task(VPLinear(), num))
    assert t.dtype == torch.float64
    assert torch.equal(nodes(VPLinear(), num, t.tolist()), t)


def test_missing_scipy_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    for ask in (DMN().times, DMN().check):
        with pytest.raises(SolverBenchError, match=r"pip install 'solverbench\[schedules\]'"):
            ask(task(VE(), 4))


@pytest.mark.parametrize("num", [1, 7])
def test_check_asks_for_scipy_only_where_a_search_is_needed(
    num: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step has no interior; a list of seven is printed."""
    DMN(stored=False).check(task(VE(), num))
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    DMN().check(task(VE(), num))


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="power is 3"):
        DMN(power=3)
    with pytest.raises(ValueError, match="logsnr, time"):
        DMN(start="edm")
