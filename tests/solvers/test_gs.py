"""GS against the reference implementation."""

import pytest
import torch
from torch import Tensor

from solverbench.backbones.gaussian import Gaussian
from solverbench.benchmark.ema import Ema
from solverbench.schedule import VPLinear, nodes
from solverbench.solvers import Batch, FitTask, Setting, sample
from solverbench.solvers.gs import GS
from tests.problems import Problem, bound, edm, gap, golden, latent

PARAMETERS = {"mu_logit": "theta", "xi": "xi", "c": "c", "a": "a"}


def prefixes(name: str) -> list[str]:
    return [key.removesuffix("__final") for key in golden(name) if key.endswith("__final")]


def problem_of(prefix: str) -> Problem:
    name = prefix.split("_")[0]
    return edm() if name == "edm" else latent(name)


def solver_of(prefix: str, problem: Problem, data: dict[str, Tensor]) -> GS:
    _, size, *_ = prefix.split("__")
    nfe, _, history = size.removeprefix("nfe").partition("_hist")
    solver = GS(
        Setting(problem.schedule, int(nfe), problem.output),
        history=int(history) if history else None,
    )
    with torch.no_grad():
        for theirs, ours in PARAMETERS.items():
            if f"{prefix}__{theirs}" in data:
                getattr(solver, ours).copy_(data[f"{prefix}__{theirs}"])
    return solver


@pytest.mark.parametrize("name", ["gs_zero", "gs_random"])
def test_goldens_cover_what_they_should(name: str) -> None:
    assert len(prefixes(name)) >= 5


@pytest.mark.parametrize("prefix", prefixes("gs_zero"))
def test_initial_logits_are_those_of_the_reference(prefix: str) -> None:
    problem = problem_of(prefix)
    solver = solver_of(prefix, problem, {})
    difference = solver.theta.detach() - golden("gs_zero")[f"{prefix}__mu_logit"]
    assert float(difference.abs().max()) < 1e-11  # the only logit of two steps is 0


@pytest.mark.parametrize(
    ("name", "prefix"), [(n, p) for n in ("gs_zero", "gs_random") for p in prefixes(n)]
)
def test_samples_losses_and_gradients_meet_the_reference(name: str, prefix: str) -> None:
    """1e-9 on samples and losses, 1e-8 on gradients, relative to the largest entry."""
    data, problem = golden(name), problem_of(prefix)
    solver = solver_of(prefix, problem, data)
    assert gap(solver.grid().t, data[f"{prefix}__timesteps"]) < 1e-12
    final = sample(problem, solver.tableau(), problem.noise, problem.condition)
    assert gap(final, data[f"{prefix}__final"]) < 1e-9
    difference = final - golden("gs_random")[f"{prefix.split('_')[0]}__target"]
    squared = prefix.startswith("edm") and "_l1" not in prefix
    losses = (difference.square() if squared else difference.abs()).flatten(1).mean(1)
    assert gap(losses, data[f"{prefix}__loss_per_sample"]) < 1e-9
    assert gap(losses.mean(), data[f"{prefix}__loss"]) < 1e-9
    losses.mean().backward()
    for theirs, ours in PARAMETERS.items():
        if f"{prefix}__grad_{theirs}" in data:
            assert gap(getattr(solver, ours).grad, data[f"{prefix}__grad_{theirs}"]) < 1e-8


@pytest.mark.parametrize("t_min", [1e-3, 1e-4])
@pytest.mark.parametrize("nfe", [11, 12])
def test_initial_grid_is_that_of_the_reference(t_min: float, nfe: int) -> None:
    key = f"gs_init_eps{t_min}_f64__nfe{nfe}"
    solver = GS(Setting(VPLinear(t_min=t_min), nfe))
    assert gap(solver.theta, golden("timesteps")[f"{key}__mu_logit"]) < 1e-11
    assert gap(solver.grid().t, golden("timesteps")[f"{key}__timesteps"]) < 1e-12


@pytest.mark.parametrize("frame", ["ve", "vp-linear", "vp-discrete-sd"])
@pytest.mark.parametrize("name", ["time-uniform", "time-quadratic-sqrt", "logsnr", "edm"])
@pytest.mark.parametrize("nfe", [1, 2, 4, 7])
def test_any_falling_grid_can_be_the_start(name: str, nfe: int, frame: str) -> None:
    """1e-15 of T for the paper's own start; the VE ends near 0, which costs nothing absolute."""
    schedule = Gaussian(frame=frame).schedule
    solver = GS(Setting(schedule, nfe), schedule=name)
    wanted = nodes(schedule, nfe, name)
    assert solver.theta.shape == (nfe - 1,)
    assert float((solver.grid().t.detach() - wanted).abs().max()) <= 1e-15 * schedule.t_max


def test_logits_of_four_steps_are_the_known_ones() -> None:
    """Six digits are listed."""
    theta = GS(Setting(VPLinear(), 4)).theta
    wanted = torch.tensor([1.098639, 0.693162, 0.0], dtype=torch.float64)
    assert float((theta.detach() - wanted).abs().max()) < 5e-7


def test_grid_that_the_logits_cannot_hold_is_refused() -> None:
    times = [1.0, 0.5, 0.001 + 1e-9, 0.001]
    with pytest.raises(ValueError, match="nodes too close together for gs"):
        GS(Setting(VPLinear(), 3), schedule=times)


def test_an_explicit_start_keeps_its_own_nodes() -> None:
    times = [1.0, 0.5, 0.2, 0.01]
    grid = GS(Setting(VPLinear(), 3), schedule=times).grid()
    assert gap(grid.t, times) < 1e-15
    assert gap(grid.t_eval, times[:-1]) < 1e-15


@pytest.mark.parametrize(
    ("nfe", "registered", "used"),
    [(4, 39, 27), (5, 59, 39), (6, 83, 53), (7, 111, 69), (8, 143, 87), (10, 219, 129)],
)
def test_numbers_are_counted_as_in_the_reference(nfe: int, registered: int, used: int) -> None:
    solver = GS(Setting(VPLinear(), nfe))
    assert sum(p.numel() for p in solver.parameters()) == registered
    assert solver.num_used() == used
    assert [name for name, _ in solver.named_parameters()] == ["theta", "xi", "c", "a"]


@pytest.mark.parametrize("nfe", [1, 2, 3, 5])
@pytest.mark.parametrize("history", [None, 1, 2, 3])
def test_gradient_reaches_every_used_number_and_no_other(nfe: int, history: int | None) -> None:
    problem = Gaussian()
    solver = bound(GS, problem, nfe, history=history)
    rng = torch.Generator().manual_seed(nfe)
    with torch.no_grad():
        for parameter in solver.parameters():
            noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            parameter += 0.003 * noise
    final = sample(problem, solver.tableau(), problem.noise(range(4)).double())
    final.square().mean().backward()
    moved = sum(int((p.grad != 0).sum()) for p in solver.parameters())
    assert moved == solver.num_used()
    lag, step = torch.meshgrid(torch.arange(solver.kept), torch.arange(nfe), indexing="ij")
    for table in (solver.c, solver.a):
        assert bool((table.grad[lag > step] == 0).all())


def test_one_step_has_no_logits() -> None:
    problem = Gaussian()
    solver = bound(GS, problem, 1)
    assert solver.theta.shape == (0,)
    assert gap(solver.grid().t, [1.0, 1e-3]) < 1e-15
    assert solver.num_used() == 3


def test_network_time_and_conversion_time_differ() -> None:
    """Two-time formula in closed form: m = kappa x + rho D."""
    problem = Gaussian()
    schedule, solver = problem.schedule, bound(GS, problem, 1)
    with torch.no_grad():
        solver.xi += -0.05
    t, told = 1.0, 0.95
    ratio = schedule.sigma(t) / schedule.sigma(told)
    kappa, rho = (1 - ratio) / schedule.alpha(t), ratio * schedule.alpha(told) / schedule.alpha(t)
    end = solver.grid()
    f = torch.expm1(end.lam[0] - end.lam[1])
    wanted = end.sigma[1] / end.sigma[0] - end.alpha[1] * f * kappa, -end.alpha[1] * f * rho
    tableau = solver.tableau()
    assert float(tableau.tau[0].detach()) == pytest.approx(told, rel=1e-15)
    assert gap(tableau.A[1], [float(w.detach()) for w in wanted]) < 1e-12


def distance(kind: str) -> object:
    power = 2 if kind == "l2" else 1
    return lambda student, target: (student - target).abs().pow(power).flatten(1).mean(1)


@pytest.mark.parametrize(("run", "nfe", "kind"), [("gs_l2", 3, "l2"), ("gs_latent_l1", 4, "l1")])
def test_training_follows_the_reference(run: str, nfe: int, kind: str) -> None:
    """1e-8 after 50 and 20 iterations: losses, norms before clipping, parameters and average."""
    data = {k.removeprefix(f"{run}__"): v for k, v in golden("train_gs").items() if run in k}
    problem = edm() if run == "gs_l2" else latent("ldm")
    conditions = problem.labelled(data["labels"]) if "labels" in data else None
    solver = bound(GS, problem, nfe)
    task = FitTask(
        sample=lambda tableau, noise, condition: sample(problem, tableau, noise, condition),
        distance=distance(kind),  # type: ignore[arg-type]
        lr=1e-3,
        clip=1.0,
        rng=torch.Generator(),
    )
    rule, logs = solver.rule(task), []
    parameters = dict(solver.named_parameters())
    average = Ema(parameters, decay=0.999, warmup=True)
    for rows in data["batch_order"]:
        condition = None if conditions is None else conditions[rows]
        batch = Batch(data["noise"][rows], data["teacher"][rows], condition, rows)
        logs.append(rule.step(batch, 1.0))
        average.update()
    assert gap(torch.stack([log["loss"] for log in logs]), data["log_loss_total"]) < 1e-8
    assert gap(torch.stack([log["grad_norm"] for log in logs]), data["log_grad_norm"]) < 1e-8
    for theirs, ours in PARAMETERS.items():
        assert gap(parameters[ours], data[f"final_{theirs}"]) < 1e-8
        assert gap(average.shadow[ours], data[f"ema_{theirs}"]) < 1e-8


def test_training_state_continues_with_the_same_bits() -> None:
    problem = edm()
    data = golden("train_gs")

    def fresh() -> tuple[GS, object]:
        solver = bound(GS, problem, 3)
        task = FitTask(
            sample=lambda tableau, noise, condition: sample(problem, tableau, noise, condition),
            distance=distance("l2"),  # type: ignore[arg-type]
            lr=1e-3,
            clip=1.0,
            rng=torch.Generator(),
        )
        return solver, solver.rule(task)

    def train(rule: object, start: int, stop: int) -> None:
        for rows in data["gs_l2__batch_order"][start:stop]:
            batch = Batch(data["gs_l2__noise"][rows], data["gs_l2__teacher"][rows], None, rows)
            rule.step(batch, 1.0)  # type: ignore[attr-defined]

    (whole, rule), (first, early), (second, late) = fresh(), fresh(), fresh()
    train(rule, 0, 6)
    train(early, 0, 3)
    second.load_state_dict(first.state_dict())
    late.load_state(early.state())  # type: ignore[attr-defined]
    train(late, 3, 6)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


def test_step_that_is_not_finite_changes_nothing() -> None:
    problem = edm()
    solver = bound(GS, problem, 3)
    before = {key: value.clone() for key, value in solver.state_dict().items()}
    task = FitTask(
        sample=lambda tableau, noise, condition: sample(problem, tableau, noise, condition),
        distance=lambda student, target: (student * torch.nan).flatten(1).mean(1),
        lr=1e-3,
        clip=1.0,
        rng=torch.Generator(),
    )
    batch = Batch(problem.noise, problem.noise, None, torch.arange(2))
    assert bool(solver.rule(task).step(batch, 1.0)["loss"].isnan())
    for key, value in solver.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    ("options", "title", "trained", "used"),
    [
        ({}, "GS", ["theta", "xi", "c", "a"], 39),
        ({"learn": "times"}, "GS (times only)", ["theta", "xi"], 9),
        ({"learn": "coefficients"}, "GS (coefficients only)", ["c", "a"], 30),
        ({"decoupled": False}, "GS (without xi)", ["theta", "c", "a"], 34),
        ({"history": 2}, "GS (history 2)", ["theta", "xi", "c", "a"], 27),
        (
            {"learn": "times", "decoupled": False, "history": 3},
            "GS (times only, without xi, history 3)",
            ["theta"],
            4,
        ),
    ],
)
def test_ablations_train_what_they_name_and_nothing_else(
    options: dict[str, object], title: str, trained: list[str], used: int
) -> None:
    problem = Gaussian()
    solver = bound(GS, problem, 5, **options)
    assert solver.title == solver.tableau().meta["title"] == title
    assert [name for name, _ in solver.named_parameters()] == trained
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in solver.parameters():
            noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            parameter += 0.003 * noise
    sample(problem, solver.tableau(), problem.noise(range(4)).double()).square().mean().backward()
    reached = sum(int((p.grad != 0).sum()) for p in solver.parameters())
    assert reached == solver.num_used() == used


@pytest.mark.parametrize("learn", ["times", "coefficients"])
def test_part_of_the_numbers_gets_the_gradients_that_it_has_in_the_whole(learn: str) -> None:
    """At the start, where both stand at the same place: rounding alone differs."""
    problem = edm()
    grads = []
    for options in ({}, {"learn": learn}):
        solver = bound(GS, problem, 4, **options)
        sample(problem, solver.tableau(), problem.noise).square().mean().backward()
        grads.append({name: p.grad for name, p in solver.named_parameters()})
    assert set(grads[1]) < set(grads[0])
    for name, grad in grads[1].items():
        assert gap(grad, grads[0][name]) < 1e-10


def test_an_unknown_part_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="learn is 'xi'; allowed: all, times, coefficients"):
        GS(Setting(VPLinear(), 4), learn="xi")
