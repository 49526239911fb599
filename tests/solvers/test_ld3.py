"""LD3 against numbers of the reference implementation, and what its options mean."""

import pytest
import torch
from torch import Tensor

from solverbench.backbones.gaussian import Gaussian
from solverbench.benchmark.conformance.solvers import check_solver
from solverbench.schedule import VE, NoiseSchedule, VPDiscrete, VPLinear, nodes
from solverbench.solvers import FitTask, LearnableSolver, Setting, sample
from solverbench.solvers.dpmpp import DPMpp3M
from solverbench.solvers.ipndm import IPNDM2, IPNDM3
from solverbench.solvers.ld3 import LD3IPNDM, LD3DPMpp, LD3UniPC, LearnedTimes
from solverbench.solvers.unipc import UniPC3
from tests.problems import Problem, bound, edm_ve, gap, golden, latent

PARAMETERS = {"params1": "theta", "params2": "xi"}
KINDS = {"unipc": LD3UniPC, "dpmpp": LD3DPMpp, "ipndm": LD3IPNDM}
FINALS = [key.removesuffix("__final") for key in golden("ld3") if key.endswith("__final")]
# logits and shifts, N = 4, with the times that follow from them
LOGITS, SHIFTS = [1.3, 0.8, 1.0, 0.6, 1.4], [0.4, 0.03, -0.02, 0.5, 0.3]
TIMES = [1.0, 0.625626856665, 0.457410159978, 0.206460337303, 0.001]
TIMES_EVAL = [1.0, 0.655626856665, 0.437410159978, 0.290568685647]
LAMS = [-4.38202663467, -2.20265912062, 0.45922637209, 2.2435415781, 6.21460809842]
ON_STEPS = [80.0, 8.78160436647, 0.644534858411, 0.0643420704345]
ON_LOGITS = [80.0, 8.78160436647, 0.644534858411, 0.0959870897715]


def put(solver: LearnableSolver, theta: Tensor | list[float], xi: Tensor | list[float]) -> None:
    with torch.no_grad():
        solver.theta.copy_(torch.as_tensor(theta, dtype=torch.float64))
        solver.xi.copy_(torch.as_tensor(xi, dtype=torch.float64))


def made(key: str) -> tuple[LearnableSolver, Problem]:
    """The solver of a golden, with its parameters, and its problem."""
    start, _, method = key.rpartition("__")
    mode, size, _ = start.split("__")
    family, *variant, order = method.split("_")
    problem = latent("ldm") if mode.startswith("vp") else edm_ve()
    options: dict[str, object] = {"space": "time", "order": int(order[1:])}
    if mode == "lambda":
        options |= {"space": "logsnr", "logit_bound": True}
    if variant:
        options |= {"variant": variant[0], "detached": True}
    solver = bound(KINDS[family], problem, int(size[3:]), **options)
    assert isinstance(solver, LearnedTimes)
    data = golden("ld3")
    put(solver, data[f"{start}__params1"], data[f"{start}__params2"])
    return solver, problem


def test_goldens_cover_all_bases_and_both_spaces() -> None:
    assert len(FINALS) == 11


@pytest.mark.parametrize("key", FINALS)
def test_times_meet_the_reference(key: str) -> None:
    """1e-11: the reference adds and subtracts ends of lambda where ours multiplies."""
    solver, start = made(key)[0], key.rpartition("__")[0]
    grid, data = solver.grid(), golden("ld3")
    wanted, told = data[f"{start}__times1"], data[f"{start}__times2"]
    assert float(((grid.t.detach() - wanted) / wanted).abs().max()) < 1e-11
    assert float(((grid.t_eval.detach() - told[:-1]) / told[:-1]).abs().max()) < 1e-11


@pytest.mark.parametrize("key", FINALS)
def test_samples_losses_and_gradients_meet_the_reference(key: str) -> None:
    """1e-9 on samples and losses, 1e-8 on gradients, relative to the largest entry."""
    solver, problem = made(key)
    data = golden("ld3")
    final = sample(problem, solver.tableau(), problem.noise, problem.condition)
    target = golden("gs_random")["ldm__target" if key.startswith("vp") else "edm__target"]
    loss = (final - target).square().mean()
    loss.backward()
    assert gap(final, data[f"{key}__final"]) < 1e-9
    assert gap(loss, data[f"{key}__loss"]) < 1e-9
    for theirs, ours in PARAMETERS.items():
        wanted = data[f"{key}__grad_{theirs}"]
        found = getattr(solver, ours).grad
        # where every shift is clipped, as with the empty window of equal logits, all are exactly 0
        assert float((found - wanted).abs().max()) <= 1e-8 * float(wanted.abs().max())


def test_time_map_of_the_written_example() -> None:
    """Twelve digits are listed."""
    solver = LD3IPNDM(Setting(VPLinear(), 4), space="time")
    put(solver, LOGITS, SHIFTS)
    grid = solver.grid()
    assert gap(grid.t, TIMES) < 1e-11
    assert gap(grid.t_eval, TIMES_EVAL) < 1e-11


@pytest.mark.parametrize(("logit_bound", "told"), [(False, ON_STEPS), (True, ON_LOGITS)])
def test_lambda_map_of_the_written_example(logit_bound: bool, told: list[float]) -> None:
    """Twelve digits are listed."""
    solver = LD3IPNDM(Setting(VE(), 4), logit_bound=logit_bound)
    put(solver, LOGITS, SHIFTS)
    grid = solver.grid()
    assert gap(grid.lam, LAMS) < 1e-11
    assert gap(grid.t_eval, told) < 1e-11


@pytest.mark.parametrize("schedule", [VE(), VPLinear(), VPDiscrete(0.00085, 0.012)])
@pytest.mark.parametrize(("space", "name"), [("time", "time-uniform"), ("logsnr", "logsnr")])
@pytest.mark.parametrize("nfe", [1, 2, 5, 10])
def test_equal_logits_are_the_uniform_grid(
    schedule: NoiseSchedule, space: str, name: str, nfe: int
) -> None:
    """1e-12 of each time: VE spans eleven in lambda, the discrete table divides small numbers."""
    grid = LD3UniPC(Setting(schedule, nfe), space=space).grid()
    wanted = nodes(schedule, nfe, name)
    assert float((grid.t.detach() / wanted - 1).abs().max()) < 1e-12
    assert torch.equal(grid.t_eval, grid.t[:-1])
    assert (grid.t[0], grid.t[-1]) == (wanted[0], wanted[-1])


@pytest.mark.parametrize("conversion", ["network", "node"])
@pytest.mark.parametrize(
    ("kind", "base", "options"),
    [
        (LD3UniPC, UniPC3, {"variant": "bh2"}),
        (LD3DPMpp, DPMpp3M, {}),
        (LD3IPNDM, IPNDM3, {}),
        (LD3IPNDM, IPNDM2, {"order": 2}),
    ],
)
def test_untrained_it_is_its_base_solver(
    kind: type[LD3UniPC], base: type[UniPC3], options: dict[str, object], conversion: str
) -> None:
    """Rounding of the grid alone."""
    problem = Gaussian()
    mine = bound(kind, problem, 6, conversion=conversion, **options).tableau()
    options = {key: value for key, value in options.items() if key != "order"}
    assert gap(mine.A, bound(base, problem, 6, **options).tableau().A) < 1e-12


def test_last_time_can_be_chosen() -> None:
    grid = LD3DPMpp(Setting(VPLinear(), 4), t_min=0.02).grid()
    assert float(grid.t[-1].detach()) == pytest.approx(0.02, rel=1e-14)


@pytest.mark.parametrize("kind", [LD3DPMpp, LD3UniPC])
def test_conversion_time_matters_once_the_two_times_differ(kind: type[LD3UniPC]) -> None:
    """Data at the network's time are the network's own output, so no state enters with it."""
    problem = Gaussian()
    tableaux = {}
    for conversion in ("network", "node"):
        solver = bound(kind, problem, 1, conversion=conversion)
        two = bound(kind, problem, 2, conversion=conversion)
        put(two, [1.0, 1.0, 1.0], [0.0, 0.7, 0.0])
        tableaux[conversion] = two.tableau().detach()
        assert solver.num_used() == 0
    own, node = tableaux["network"], tableaux["node"]
    assert torch.equal(own.tau, node.tau)
    assert float(own.tau[1]) != float(own.nodes[1])
    assert gap(own.A[:2], node.A[:2]) < 1e-15
    assert gap(own.A[2], node.A[2]) > 1e-3


def test_network_times_stay_ordered_and_at_the_ends_unmoved() -> None:
    for space in ("time", "logsnr"):
        solver = LD3DPMpp(Setting(VPLinear(), 6), space=space)
        rng = torch.Generator().manual_seed(3)
        theta, xi = torch.randn(2, 7, generator=rng, dtype=torch.float64)
        put(solver, theta, 100 * xi)
        grid = solver.grid()
        assert bool((grid.t.diff() < 0).all())
        assert bool((grid.t_eval.diff() <= 0).all())
        assert grid.t_eval[0] == grid.t[0]
        assert float(grid.t[0].detach()) == pytest.approx(1.0, rel=1e-14)


def test_without_decoupling_the_shifts_are_neither_used_nor_trained() -> None:
    problem = Gaussian()
    solver = bound(LD3IPNDM, problem, 4, decoupled=False)
    put(solver, torch.ones(5), torch.full((5,), 0.1))
    grid = solver.grid()
    assert torch.equal(grid.t[:-1], grid.t_eval)
    solver.tableau().A.sum().backward()
    assert solver.xi.grad is None
    assert solver.num_used() == 4


@pytest.mark.parametrize(("nfe", "used"), [(1, 0), (2, 3), (4, 7), (10, 19)])
def test_gradient_reaches_every_used_number_and_no_other(nfe: int, used: int) -> None:
    """N logits, of which a common shift is idle, and N - 1 shifts."""
    problem = Gaussian()
    solver = bound(LD3DPMpp, problem, nfe)
    rng = torch.Generator().manual_seed(nfe)
    put(solver, torch.randn(nfe + 1, generator=rng), 1e-3 * torch.randn(nfe + 1, generator=rng))
    final = sample(problem, solver.tableau(), problem.noise(range(4)).double())
    final.square().mean().backward()
    assert sum(int((p.grad != 0).sum()) for p in solver.parameters()) == used
    assert solver.num_used() == used


def test_detached_unipc_samples_the_same_with_another_gradient() -> None:
    problem, found = Gaussian(), []
    for detached in (False, True):
        solver = bound(LD3UniPC, problem, 5, detached=detached)
        final = sample(problem, solver.tableau(), problem.noise(range(4)).double())
        final.square().mean().backward()
        found.append((final.detach(), solver.theta.grad))
    (final, full), (same, partial) = found
    assert torch.equal(final, same)
    assert gap(partial, full) > 1e-3


def test_full_gradient_is_the_difference_quotient() -> None:
    """1e-6: central differences with step 1e-5 in float64."""
    problem = Gaussian()
    solver = bound(LD3UniPC, problem, 5)
    put(solver, [1.0, 1.1, 0.9, 1.2, 1.0, 0.8], [0.0, 0.1, -0.1, 0.2, 0.0, 0.0])
    noise = problem.noise(range(2)).double()

    def loss() -> Tensor:
        return sample(problem, solver.tableau(), noise).square().mean()

    loss().backward()
    for parameter, i in ((solver.theta, 2), (solver.theta, 5), (solver.xi, 3)):
        values = []
        for step in (1e-5, -2e-5):
            parameter.data[i] += step
            values.append(float(loss().detach()))
        parameter.data[i] += 1e-5
        quotient = (values[0] - values[1]) / 2e-5
        assert float(parameter.grad[i]) == pytest.approx(quotient, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "sigma"}, "space is 'sigma'; allowed: logsnr, time"),
        ({"conversion": "both"}, "conversion is 'both'; allowed: network, node"),
        ({"order": 4}, "order is 4; allowed: 2, 3"),
        ({"window": 0.0}, "window is above 0"),
        ({"radius": -1.0}, "radius is a finite number of at least 0; got -1.0"),
        ({"theta_lr": -1e-3}, "theta_lr is a finite number of at least 0; got -0.001"),
        ({"xi_lr": float("nan")}, "xi_lr is a finite number of at least 0; got nan"),
        ({"shift_lr": float("inf")}, "shift_lr is a finite number of at least 0; got inf"),
        ({"first_phase": 1.5}, "first_phase is from 0 to 1; got 1.5"),
        ({"space": "time", "logit_bound": True}, "logit_bound belongs to space logsnr"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LD3DPMpp(Setting(VPLinear(), 4), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ld3-dpmpp", "ld3-ipndm", "ld3-unipc"])
def test_conformance(name: str) -> None:
    failed = [check for check in check_solver(name) if not check.passed]
    assert failed == []


def task(lr: float) -> FitTask:
    return FitTask(
        sample=lambda tableau, noise, condition: noise,
        distance=lambda student, target: student.flatten(1).mean(1),
        lr=lr,
        clip=1.0,
        rng=torch.Generator(),
        iterations=70,
    )


def test_rule_has_the_published_rates_whatever_the_recipe_asks_of_adam() -> None:
    rule = LD3DPMpp(Setting(VPLinear(), 4)).rule(task(lr=0.7))
    assert rule.rates == {"theta": 5e-3, "xi": 0.025}
    assert [group.minimum for group in rule.groups] == [5e-5, 1e-6]
    assert (rule.radius, rule.shift_lr) == (0.001, 3.0)
    assert [set(rule.phase(i)) for i in (0, 19)] == [{"theta"}] * 2
    assert set(rule.phase(20)) == {"theta", "xi"}
    logits = rule.groups[0].optimiser.defaults
    assert (logits["alpha"], logits["eps"], logits["momentum"]) == (0.99, 1e-8, 0.9)
    assert rule.groups[1].optimiser.defaults["momentum"] == 0


@pytest.mark.parametrize("kind", [LD3DPMpp, LD3UniPC])
def test_rate_of_the_logits_is_an_option(kind: type[LD3DPMpp]) -> None:
    rule = kind(Setting(VPLinear(), 4), theta_lr=0.02).rule(task(lr=0.7))
    assert rule.rates["theta"] == 0.02
    assert rule.groups[0].minimum == 0.02 / 100
