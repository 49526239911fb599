"""Schedules, their inverses and the grids on them."""

import math

import pytest
import torch

from solverbench.errors import SolverBenchError
from solverbench.schedule import (
    GRIDS,
    VE,
    NoiseSchedule,
    Prediction,
    VPDiscrete,
    VPLinear,
    nodes,
    vp_wrapped,
    wrapped_between,
)
from solverbench.stored_schedules import STORED_SIGMAS
from tests.problems import DISCRETE, gap, golden, vectors

SCHEDULES: dict[str, NoiseSchedule] = {
    "edm_eps0.001": VPLinear(t_min=1e-3),
    "edm_eps0.0001": VPLinear(t_min=1e-4),
    "ldm": VPDiscrete(*DISCRETE["ldm"]),
    "sd": VPDiscrete(*DISCRETE["sd"]),
}
GRID_NAMES = {
    "logSNR": "logsnr",
    "time_uniform": "time-uniform",
    "time_quadratic": "time-quadratic-sqrt",
}


@pytest.mark.parametrize("key", SCHEDULES)
@pytest.mark.parametrize("value", ["log_alpha", "alpha", "sigma", "lambda", "inverse_lambda"])
def test_schedule_meets_the_reference(key: str, value: str) -> None:
    """1e-11: float64 with the cancellation that the reference does not avoid near t = 0."""
    data, schedule = golden("schedules"), SCHEDULES[key]
    if value == "inverse_lambda":
        computed = schedule.inverse_lam(data["lam_query"])
    else:
        computed = getattr(schedule, value.replace("lambda", "lam"))(data["t"])
    assert gap(computed, data[f"{key}_f64__{value}"]) < 1e-11


@pytest.mark.parametrize("key", ["edm_eps0.001", "edm_eps0.0001"])
def test_edm_noise_level_meets_the_reference(key: str) -> None:
    data, schedule = golden("schedules"), SCHEDULES[key]
    assert gap(schedule.shat(data["t"]), data[f"{key}_f64__edm_sigma"]) < 1e-11
    assert gap(schedule.alpha(data["t"]), data[f"{key}_f64__edm_scale"]) < 1e-11


@pytest.mark.parametrize("name", ["ldm", "sd"])
def test_discrete_table_meets_the_reference(name: str) -> None:
    table = VPDiscrete(*DISCRETE[name]).alphas_cumprod
    assert gap(table, golden("schedules")[f"{name}_f64__alphas_cumprod"]) < 1e-12


@pytest.mark.parametrize("t_min", [1e-3, 1e-4])
def test_unclipped_wrapped_schedule_has_the_usual_constants(t_min: float) -> None:
    wrapped = vp_wrapped(t_min, 0.0, math.inf)
    wanted = golden("schedules")[f"edm_eps{t_min}_f64__beta0_beta1"]
    assert gap(torch.tensor([wrapped.beta_0, wrapped.beta_1], dtype=torch.float64), wanted) < 1e-11


def test_clipped_wrapped_schedule_spans_the_range_of_the_network() -> None:
    wrapped = vp_wrapped(1e-3, 0.02, 80.0)
    assert float(wrapped.shat(1e-3)) == pytest.approx(0.02, rel=1e-12)
    assert float(wrapped.shat(1.0)) == pytest.approx(80.0, rel=1e-12)


@pytest.mark.parametrize("schedule", [VE(), *SCHEDULES.values()])
def test_inverse_undoes_lambda(schedule: NoiseSchedule) -> None:
    t = torch.linspace(schedule.t_min, schedule.t_max, 50, dtype=torch.float64)
    assert gap(schedule.inverse_lam(schedule.lam(t)), t) < 1e-12


@pytest.mark.parametrize("schedule", [VE(), *SCHEDULES.values()])
def test_gradients_of_a_schedule_are_its_slopes(schedule: NoiseSchedule) -> None:
    t = torch.tensor([0.12345, 0.5678], dtype=torch.float64, requires_grad=True)
    for function in (schedule.log_alpha, schedule.sigma, schedule.lam, schedule.shat):
        assert torch.autograd.gradcheck(function, (t,))
    lam = schedule.lam(t).detach().requires_grad_()
    assert torch.autograd.gradcheck(schedule.inverse_lam, (lam,))


@pytest.mark.parametrize("key", SCHEDULES)
@pytest.mark.parametrize("grid", GRID_NAMES)
@pytest.mark.parametrize("num", [11, 12, 15])
def test_grid_meets_the_reference(key: str, grid: str, num: int) -> None:
    wanted = golden("timesteps")[f"{key}_f64__{grid}__nfe{num}"]
    assert gap(nodes(SCHEDULES[key], num, GRID_NAMES[grid]), wanted) < 1e-11


@pytest.mark.parametrize("key", vectors()["schedules"])
def test_grid_meets_the_listed_vectors(key: str) -> None:
    """1e-9: the lists carry twelve digits."""
    frame, grid, num = key.split("/")
    names = {
        "edm_rho7": "edm",
        "time_quad_sqrt": "time-quadratic-sqrt",
        "time_quad_pow": "time-quadratic-shifted",
    }
    schedule = VE() if frame == "ve" else VPLinear()
    computed = nodes(schedule, int(num), names.get(grid, grid.replace("_", "-")))
    assert gap(computed, vectors()["schedules"][key]) < 1e-9


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("schedule", [VE(), *SCHEDULES.values()])
def test_every_grid_falls_from_end_to_end(name: str, schedule: NoiseSchedule) -> None:
    t = nodes(schedule, 7, name)
    assert t.shape == (8,)
    assert bool((t.diff() < 0).all())
    assert float(t[0]) == pytest.approx(schedule.t_max, rel=1e-12)
    assert float(t[-1]) == pytest.approx(schedule.t_min, rel=1e-9)


def test_vp_time_grid_is_uniform_in_the_wrapped_time_for_rho_1() -> None:
    wrapped = wrapped_between(0.002, 80.0)
    tau = wrapped.inverse_lam(-nodes(VE(), 5, "vp-time", rho=1.0).log())
    assert gap(tau, torch.linspace(1, 1e-3, 6, dtype=torch.float64)) < 1e-12


@pytest.mark.parametrize("num", [4, 5, 6, 7, 8])
def test_stored_gits_lists_are_the_times_of_the_paper(num: int) -> None:
    """Half a unit of the fourth digit, which is where the paper stops, and rounded sigmas."""
    t = nodes(VPDiscrete(*DISCRETE["sd"]), num, "gits-sd")
    paper = torch.tensor(vectors()["tables"]["gits_sd_paper_t"][str(num)], dtype=torch.float64)
    assert float((t - paper).abs().max()) < 1.5e-4


def test_stored_lists_are_the_published_ones() -> None:
    tables = vectors()["tables"]
    for num, sigmas in tables["gits_sd_ipndm_sigma"].items():
        assert list(STORED_SIGMAS["gits-sd"][0][int(num)]) == sigmas
    cifar10 = tables["gits_cifar10_edm_sigma_example"]["6"]
    assert list(STORED_SIGMAS["gits-cifar10"][0][6]) == cifar10
    for name in ("sd15", "sdxl"):
        assert list(STORED_SIGMAS[f"ays-{name}"][0][10]) == tables["ays_10step"][f"{name}_sigma"]


def test_ays_lists_are_interpolated_in_log_sigma() -> None:
    ten, twenty, five = (nodes(VE(t_max=14.6146), num, "ays-sd15") for num in (10, 20, 5))
    assert gap(twenty[::2], ten) < 1e-14
    assert gap(twenty[1::2], (ten[1:] * ten[:-1]).sqrt()) < 1e-14
    assert gap(five, ten[::2]) < 1e-14


def test_gits_lists_are_not_interpolated() -> None:
    with pytest.raises(ValueError, match="has no list of 12 steps; it has 3, 4"):
        nodes(VE(), 12, "gits-sd")


def test_unknown_grid_names_the_nearest_one() -> None:
    with pytest.raises(SolverBenchError, match="did you mean 'logsnr'"):
        nodes(VE(), 4, "logsnrr")


@pytest.mark.parametrize(
    "times", [[80.0, 1.0, 0.002], [80, 1, 2, 0.5, 0.002], [80.0, 5.0, 1.0, 0.1, 0.0]]
)
def test_explicit_grid_must_fall_and_fit(times: list[float]) -> None:
    with pytest.raises(ValueError, match="needs 5 decreasing times"):
        nodes(VE(), 4, times)


@pytest.mark.parametrize("t_min", [0.0, -1.0, 1.0, math.nan])
def test_grid_must_end_inside_the_schedule(t_min: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        nodes(VPLinear(), 4, t_min=t_min)


@pytest.mark.parametrize("name", ["ays-sd15", [5.0, 2.0, 1.0]])
def test_a_schedule_must_start_where_samples_do(name: str | list[float]) -> None:
    with pytest.raises(ValueError, match="starts where samples do, at 80"):
        nodes(VE(), 10 if name == "ays-sd15" else 2, name)


def test_exponent_belongs_to_two_grids_only() -> None:
    with pytest.raises(ValueError, match="rho is positive and for the grids edm and vp-time"):
        nodes(VE(), 4, "logsnr", rho=7.0)


def test_predictions_of_the_three_outputs_agree() -> None:
    rng = torch.Generator().manual_seed(0)
    x, x0 = torch.randn(2, 3, generator=rng, dtype=torch.float64)
    model = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    convert = torch.tensor(0.28, dtype=torch.float64), torch.tensor(0.96, dtype=torch.float64)
    eps = (x - 0.6 * x0) / 0.8
    raws = {"x0": x0, "eps": eps, "v": 0.6 * eps - 0.8 * x0}
    for output, raw in raws.items():
        plain = Prediction(x, raw, output, model)  # type: ignore[arg-type]
        assert gap(plain.x0, x0) < 1e-14
        assert gap(plain.eps, eps) < 1e-14
        decoupled = Prediction(x, raw, output, model, convert)  # type: ignore[arg-type]
        assert gap(decoupled.x0, (x - 0.96 * eps) / 0.28) < 1e-14
        assert gap(decoupled.eps, eps) < 1e-14
