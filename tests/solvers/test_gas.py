"""GAS against the reference implementation, and the phases of its training."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from solverbench.backbones.gaussian import Gaussian
from solverbench.benchmark.conformance import check_solver
from solverbench.benchmark.ema import Ema
from solverbench.discriminator import R3GANDiscriminator, preset, save
from solverbench.errors import SolverBenchError
from solverbench.solvers import Batch, FitTask, sample
from solverbench.solvers.gas import GAS, Adversarial
from solverbench.solvers.gs import GS
from tests.problems import Problem, bound, edm, gap, golden

PARAMETERS = {"mu_logit": "theta", "xi": "xi", "c": "c", "a": "a"}
LOGS = {
    "loss": "loss_total",
    "distance": "loss_l2",
    "grad_norm": "grad_norm",
    "dis_loss_adv": "dis_loss_adv",
    "dis_scores_fake": "dis_scores_fake",
    "dis_r1": "dis_r1",
    "dis_r2": "dis_r2",
    "gen_loss_adv": "gen_loss_adv",
    "gen_fake_gen": "gen_fake_gen",
}


def l2(student: Tensor, target: Tensor) -> Tensor:
    return (student - target).square().flatten(1).mean(1)


def task_of(problem: Any, **facts: Any) -> FitTask:
    task = FitTask(
        sample=lambda tableau, noise, condition: sample(problem, tableau, noise, condition),
        distance=l2,
        lr=1e-3,
        clip=1.0,
        rng=torch.Generator().manual_seed(7),
        iterations=10,
    )
    return replace(task, **facts)


def data() -> dict[str, Tensor]:
    return {k.removeprefix("gas_l2__"): v for k, v in golden("train_gas").items()}


def batches(start: int, stop: int) -> list[Batch]:
    known = data()
    rows = known["batch_order"][start:stop]
    return [Batch(known["noise"][r], known["teacher"][r], None, r) for r in rows]


class Replayed(Adversarial):
    """With the stored discriminator and the stored fresh noise."""

    def make_discriminator(self, batch: Batch) -> R3GANDiscriminator:
        made = R3GANDiscriminator((8, 12), (2, 3), (1, 2), 3).double()
        made.load_state_dict(
            {k.removeprefix("Dinit__"): v for k, v in data().items() if k.startswith("Dinit")}
        )
        return made

    def fresh_noise(self, batch: Batch) -> Tensor:
        return data()["disc_noise"][self.iteration - 1]


def test_training_follows_the_reference() -> None:
    """1e-8 after 6 iterations: logs, solver, average and discriminator."""
    problem, known = edm(), data()
    solver = bound(GAS, problem, 3, weight=0.1, disc_lr=1e-3)
    rule, logs = Replayed(solver, solver.game, task_of(problem)), []
    parameters = dict(solver.named_parameters())
    average = Ema(parameters, decay=0.999, warmup=True)
    for batch in batches(0, 6):
        logs.append(rule.step(batch, 1.0))
        average.update()
    for ours, theirs in LOGS.items():
        assert gap(torch.stack([log[ours] for log in logs]), known[f"log_{theirs}"]) < 1e-8, ours
    for theirs, ours in PARAMETERS.items():
        assert gap(parameters[ours], known[f"final_{theirs}"]) < 1e-8
        assert gap(average.shadow[ours], known[f"ema_{theirs}"]) < 1e-8
    for key, value in rule.discriminator.state_dict().items():
        assert gap(value, known[f"Dfinal__{key}"]) < 1e-8


def trained(rule: Adversarial, some: list[Batch]) -> list[dict[str, Tensor]]:
    return [rule.step(batch, 1.0) for batch in some]


PHASES = {"warm_start": 0.1, "disc_warmup": 0.2, "disc_warmup_lr": 2e-3, "disc_lr": 1e-3}


@pytest.mark.parametrize("stop", [1, 2, 4])  # in each phase
def test_training_state_continues_with_the_same_bits(stop: int) -> None:
    problem = edm()

    def fresh() -> tuple[GAS, Adversarial]:
        solver = bound(GAS, problem, 3, **PHASES)
        return solver, solver.rule(task_of(problem))

    (whole, rule), (first, early), (second, late) = fresh(), fresh(), fresh()
    trained(rule, batches(0, 6))
    trained(early, batches(0, stop))
    second.load_state_dict(first.state_dict())
    late.load_state({key: value.clone() for key, value in early.state().items()})
    assert late.state().keys() == early.state().keys()
    late.task.rng.set_state(early.task.rng.get_state())
    trained(late, batches(stop, 6))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
    for key, value in rule.state().items():
        assert torch.equal(value, late.state()[key])


def test_phases_train_the_solver_then_the_discriminator_then_both() -> None:
    problem = edm()
    solver = bound(GAS, problem, 3, **PHASES)
    rule, seen = solver.rule(task_of(problem)), []
    for batch in batches(0, 5):
        before = solver.theta.detach().clone()
        logs = rule.step(batch, 1.0)
        seen.append((not torch.equal(before, solver.theta), "dis_r1" in logs))
    assert seen == [(True, False), (False, True), (False, True), (True, True), (True, True)]


def test_warm_start_is_gs() -> None:
    problem = edm()
    gs, gas = bound(GS, problem, 3), bound(GAS, problem, 3, warm_start=0.3)
    for solver in (gs, gas):
        trained(solver.rule(task_of(problem)), batches(0, 3))
    for key, value in gs.state_dict().items():
        assert torch.equal(value, gas.state_dict()[key])
    assert gas.num_used() == gs.num_used()


def test_traditional_loss_trains_otherwise() -> None:
    problem, found = edm(), []
    for loss in ("relativistic", "traditional"):
        solver = bound(GAS, problem, 3, loss=loss)
        trained(solver.rule(task_of(problem)), batches(0, 2))
        found.append(solver.theta.detach().clone())
    assert not torch.equal(*found)


def test_discriminator_has_the_dtype_of_the_batch() -> None:
    problem, rules = edm(), []
    for dtype in (torch.float32, torch.float64):
        rule = bound(GAS, problem, 3).rule(task_of(problem))
        (batch,) = batches(0, 1)
        noise, target = batch.noise.to(dtype), batch.target.to(dtype)
        rule.step(Batch(noise, target, None, batch.rows), 1.0)
        rules.append(rule)
    types = [{p.dtype for p in rule.discriminator.parameters()} for rule in rules]
    assert types == [{torch.float32}, {torch.float64}]


def test_pretrained_weights_are_used(tmp_path: Path) -> None:
    made, path = preset("small-8", 3, torch.Generator().manual_seed(1)), tmp_path / "d.safetensors"
    save(path, made, {})
    problem = edm()
    solver = bound(GAS, problem, 3, pretrained=True, disc_lr=0.0)
    rule = solver.rule(task_of(problem, discriminator=path))
    trained(rule, batches(0, 1))
    for key, value in made.state_dict().items():
        assert torch.equal(rule.discriminator.state_dict()[key], value.half().double())


def test_missing_pretrained_weights_are_one_line() -> None:
    problem = edm()
    solver = bound(GAS, problem, 3, pretrained=True)
    with pytest.raises(SolverBenchError, match="no pretrained discriminator"):
        solver.rule(task_of(problem))


def test_pretrained_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    save(path, preset("small-8", 1, torch.Generator()), {})
    problem = edm()
    solver, task = bound(GAS, problem, 3, pretrained=True), task_of(problem, discriminator=path)
    with pytest.raises(SolverBenchError, match="1 x 8 x 8, the backbone has 3 x 8 x 8"):
        trained(solver.rule(task), batches(0, 1))
    with pytest.raises(SolverBenchError, match="1 x 8 x 8, the backbone has 3 x 8 x 8"):
        solver.rule(replace(task, state_shape=(3, 8, 8)))
    assert solver.rule(replace(task, state_shape=(1, 8, 8)))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("auto", (3, 12, 12), "states of 12 x 12; allowed: 8 x 8, 16 x 16, 32 x 32, 64 x 64"),
        ("auto", (3, 8, 16), "states of 8 x 16; allowed"),
        ("small-16", (3, 8, 8), "for states of 3 x 16 x 16, the backbone has 3 x 8 x 8"),
        ("r3gan-32", (4, 64, 64), "for states of 4 x 32 x 32, the backbone has 4 x 64 x 64"),
    ],
)
def test_discriminator_that_does_not_fit_is_refused_before_any_training(
    name: str, shape: tuple[int, int, int], message: str
) -> None:
    problem = edm()
    with pytest.raises(SolverBenchError, match=message):
        bound(GAS, problem, 3, discriminator=name).rule(task_of(problem, state_shape=shape))


@pytest.mark.parametrize(("name", "side"), [("auto", 8), ("auto", 64), ("r3gan-32", 32)])
def test_discriminator_that_fits_is_taken(name: str, side: int) -> None:
    problem = edm()
    task = task_of(problem, state_shape=(5, side, side))
    assert bound(GAS, problem, 3, discriminator=name).rule(task)


def test_pretrained_discriminator_is_accounted_for(tmp_path: Path) -> None:
    path, made = tmp_path / "d.safetensors", preset("small-8", 3, torch.Generator())
    problem = edm()
    solver, plain = bound(GAS, problem, 3, pretrained=True), bound(GAS, problem, 3)
    for recipe in ({"num_real": 30}, {}):
        save(path, made, {"recipe": recipe} if recipe else {})
        assert solver.rule(task_of(problem, discriminator=path)).facts() == {
            "discriminator_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "discriminator_made": recipe,
        }
    assert "more samples of the teacher" in solver.flags[0]
    assert plain.flags == ()
    assert plain.rule(task_of(problem, discriminator=path)).facts() == {}


def test_titles_tell_the_losses_apart() -> None:
    titles = [bound(GAS, edm(), 3, loss=x).title for x in ("relativistic", "traditional")]
    assert titles == ["GAS", "GAS (traditional loss)"]
    assert bound(GAS, edm(), 3, history=2, pretrained=True).title == "GAS (history 2)"


def test_states_without_a_discriminator_name_the_sizes_there_are() -> None:
    problem = Gaussian()
    rule = bound(GAS, problem, 3).rule(task_of(problem))
    noise = problem.noise(range(2))
    batch = Batch(noise, noise, None, torch.arange(2))
    with pytest.raises(SolverBenchError, match="allowed: 8 x 8, 16 x 16, 32 x 32, 64 x 64"):
        rule.step(batch, 1.0)


def test_budget_without_adversarial_iterations_is_refused() -> None:
    """Shares below 1 are rounded to whole iterations."""
    problem = edm()
    solver = bound(GAS, problem, 3, warm_start=0.5, disc_warmup=0.48)
    with pytest.raises(SolverBenchError, match=r"never meet its adversary: .* take 20 of 20"):
        solver.rule(task_of(problem, iterations=20))
    rule = solver.rule(task_of(problem, iterations=100))
    assert (rule.warm, rule.alone) == (50, 98)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "hinge"},
        {"discriminator": "big"},
        {"discriminator": "small-8", "pretrained": True},
        {"gamma": -1.0},
        {"weight": -0.1},
        {"disc_lr": float("nan")},
        {"disc_warmup_lr": float("inf")},
        {"warm_start": 300},
        {"warm_start": -0.1},
        {"warm_start": 0.5, "disc_warmup": 0.5},
        {"disc_warmup": float("nan")},
    ],
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        bound(GAS, edm(), 3, **options)


def test_step_that_is_not_finite_leaves_the_solver_alone() -> None:
    problem: Problem = edm()
    solver = bound(GAS, problem, 3)
    before = {key: value.clone() for key, value in solver.state_dict().items()}
    task = task_of(problem, distance=lambda student, target: l2(student, target) * torch.nan)
    logs = trained(solver.rule(task), batches(0, 1))
    assert bool(logs[0]["loss"].isnan())
    for key, value in solver.state_dict().items():
        assert torch.equal(value, before[key])


def test_it_keeps_the_contract_of_solvers() -> None:
    assert [check for check in check_solver("gas") if not check.passed] == []


def test_each_phase_can_have_a_learning_rate_of_its_own() -> None:
    """A cosine for the warm start, the solver at rest, then a cosine from ``joint_lr``."""
    solver = bound(GAS, edm(), 3, warm_start=0.5, disc_warmup=0.25, joint_lr=2e-3, disc_batch=4)
    task = FitTask(
        sample=lambda tableau, noise, condition: noise,
        distance=lambda student, target: student.flatten(1).mean(1),
        lr=1e-2,
        clip=1.0,
        rng=torch.Generator(),
        iterations=8,
    )
    rule = solver.rule(task)
    assert isinstance(rule, Adversarial)
    rates = []
    for iteration in range(1, 9):
        rule.iteration = iteration
        rates.append(rule._own_rate(2e-3))
    assert rates[0] == 1.0
    assert rates[:4] == sorted(rates[:4], reverse=True)
    assert rates[6] == 0.2
    assert rates[7] == pytest.approx(0.1)


def test_the_discriminator_can_have_larger_batches_than_the_solver() -> None:
    problem, sizes = edm(), list[int]()
    solver = bound(GAS, problem, 3, disc_batch=5, discriminator="small-8")

    def draw(num: int) -> Batch:
        sizes.append(num)
        rows = torch.arange(num) % 2
        return Batch(problem.noise[rows], problem.noise[rows], None, rows)

    task = FitTask(
        sample=lambda tableau, noise, condition: sample(problem, tableau, noise, condition),
        distance=lambda student, target: (student - target).square().flatten(1).mean(1),
        lr=1e-3,
        clip=1.0,
        rng=torch.Generator().manual_seed(0),
        iterations=2,
        draw=draw,
    )
    logs = solver.rule(task).step(Batch(problem.noise, problem.noise, None, torch.arange(2)), 1.0)
    assert sizes == [5]
    assert bool(logs["loss"].isfinite())


@pytest.mark.parametrize("options", [{"disc_batch": 0}, {"joint_lr": -1.0}])
def test_senseless_sizes_and_rates_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        bound(GAS, edm(), 3, **options)
