"""LD3's training rule: balls around the noise, patience, phases, and a state that resumes."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from solverbench import tensorfile
from solverbench.solvers import Batch, FitTask, Tableau, sample
from solverbench.solvers.ld3 import LD3DPMpp
from solverbench.solvers.relaxed import Relaxed, into_ball
from tests.problems import Problem, bound, edm, golden

NFE, NUM, ITERATIONS = 3, 12, 14
NOISE = golden("train_gs")["gs_l2__noise"]
TARGET = golden("train_gs")["gs_l2__teacher"]
SHIFT_LR = 2000.0  # large: the mean square over 192 entries has small gradients


class Counting:
    """The sampler of a task, which counts its calls."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.calls = problem, 0

    def __call__(self, tableau: Tableau, noise: Tensor, condition: object) -> Tensor:
        self.calls += 1
        return sample(self.problem, tableau, noise)


def squares(student: Tensor, target: Tensor) -> Tensor:
    return (student - target).square().flatten(1).mean(1)


def made(problem: Problem | None = None, **options: object) -> tuple[LD3DPMpp, Relaxed, Counting]:
    problem = problem or edm()
    options = {"shift_lr": SHIFT_LR} | options
    solver = bound(LD3DPMpp, problem, NFE, **options)
    assert isinstance(solver, LD3DPMpp)
    sampler = Counting(problem)
    task = FitTask(
        sample=sampler,
        distance=squares,
        lr=5e-3,
        clip=1.0,
        rng=torch.Generator(),
        iterations=ITERATIONS,
        round_length=3,
        num_train=NUM,
        num_validation=4,
    )
    return solver, solver.rule(task), sampler


def pairs(rows: list[int], start: int = 0) -> Batch:
    places = torch.tensor(rows)
    return Batch(NOISE[start + places], TARGET[start + places], None, places)


def training(iteration: int) -> Batch:
    return pairs([(4 * iteration + k) % NUM for k in range(4)])


def validation() -> list[Batch]:
    return [pairs([0, 1], NUM), pairs([2, 3], NUM)]


@torch.no_grad()
def losses(solver: LD3DPMpp, batch: Batch, noise: Tensor) -> Tensor:
    return squares(sample(edm(), solver.tableau().detach(), noise), batch.target)


def mean_loss(solver: LD3DPMpp, rule: Relaxed) -> float:
    found = [losses(solver, batch, rule.validation_noise(batch)) for batch in validation()]
    return float(torch.cat(found).mean())


def advance(solver: LD3DPMpp, rule: Relaxed, start: int, stop: int) -> None:
    """As the harness does: a step, the end of a round after three, a validation."""
    for iteration in range(start, stop):
        rule.step(training(iteration), 1.0)
        if iteration % 3 == 2:
            rule.round_ended(validation())
        rule.validated(mean_loss(solver, rule))


def offsets(rule: Relaxed, name: str = "train") -> Tensor:
    moved = rule.sets[name].moved
    assert moved is not None
    return moved


def test_ball_shortens_what_is_longer_and_leaves_the_rest() -> None:
    given = torch.stack([torch.full((1, 2, 2), v) for v in (0.0, 0.1, 5.0)]).double()
    found = into_ball(given, 1.0)
    assert torch.equal(found[:2], given[:2])
    assert float(found[2].norm()) == pytest.approx(1.0, rel=1e-15)
    assert float(into_ball(given, 0.0).abs().max()) == 0


def test_noise_stays_in_the_ball_and_reaches_its_border() -> None:
    """The radius is 0.001 d / N^2; 1e-12 for the rounding of a norm."""
    solver, rule, _ = made(shift_lr=1e9)
    radius = 0.001 * 3 * 8 * 8 / NFE**2
    advance(solver, rule, 0, 9)
    norms = torch.cat([offsets(rule, name).flatten(1).norm(dim=1) for name in rule.sets])
    assert float(norms.max()) <= radius * (1 + 1e-12)
    assert float(norms.max()) > radius * (1 - 1e-12)


def test_only_pairs_that_gain_move() -> None:
    solver, rule, _ = made()
    batch = training(0)
    before = losses(solver, batch, batch.noise)
    logs = rule.step(batch, 1.0)
    moved = offsets(rule)[batch.rows].flatten(1).norm(dim=1) > 0
    after = losses(solver, batch, batch.noise + offsets(rule)[batch.rows])
    assert bool((after[moved] < before[moved]).all())
    assert float(logs["moved"]) == float(moved.double().mean())
    assert float(logs["moved"]) > 0
    assert float(offsets(rule)[4:].abs().max()) == 0  # pairs of other batches


def test_steps_against_the_loss_are_refused() -> None:
    _, rule, _ = made()
    rule.shift_lr = -SHIFT_LR  # uphill, so that nothing is accepted
    rule.groups[0].optimiser.param_groups[0]["lr"] = rule.rates["theta"] = 0.0
    logs = rule.step(training(0), 1.0)
    assert float(logs["moved"]) == 0
    assert float(offsets(rule).abs().max()) == 0


def test_noise_follows_the_gradient_of_the_mean_loss() -> None:
    """A radius that nothing reaches; 1e-10 for the other order of summation."""
    solver, rule, _ = made(radius=1e6, shift_lr=100.0)
    batch = training(0)
    noise = batch.noise.clone().requires_grad_()
    loss = squares(sample(edm(), solver.tableau().detach(), noise), batch.target).mean()
    loss.backward()
    rule.step(batch, 1.0)
    found = offsets(rule)[batch.rows]
    moved = found.flatten(1).norm(dim=1) > 0
    assert bool(moved.any())
    wanted = -100 * noise.grad
    assert float((found - wanted)[moved].abs().max()) < 1e-10 * float(wanted.abs().max())


def test_radius_zero_is_hard_labels_without_a_second_pass() -> None:
    """RMSprop with momentum on the clipped gradient of the plain loss, bit for bit."""
    solver, rule, sampler = made(radius=0.0, first_phase=1.0)
    plain = bound(LD3DPMpp, edm(), NFE)
    optimiser = torch.optim.RMSprop([plain.theta], lr=5e-3, momentum=0.9)
    for iteration in range(4):
        batch = training(iteration)
        logs = rule.step(batch, 1.0)
        optimiser.zero_grad()
        loss = squares(sample(edm(), plain.tableau(), batch.noise), batch.target).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([plain.theta], 1.0)
        optimiser.step()
        assert torch.equal(logs["loss"], loss.detach())
        assert "moved" not in logs
    assert torch.equal(solver.theta, plain.theta)
    assert sampler.calls == 4
    rule.round_ended(validation())
    assert sampler.calls == 4 + 2
    batch = validation()[0]
    assert rule.validation_noise(batch) is batch.noise


def test_logits_train_alone_first() -> None:
    """2 / 7 of 14 iterations are four."""
    solver, rule, _ = made()
    for iteration in range(4):
        logs = rule.step(training(iteration), 1.0)
        assert set(logs) == {"loss", "grad_norm_theta", "moved"}
    assert float(solver.xi.detach().abs().max()) == 0
    assert "grad_norm_xi" in rule.step(training(4), 1.0)
    assert float(solver.xi.detach().abs().max()) > 0


def test_learning_rate_follows_the_harness() -> None:
    """Without momentum in the past, RMSprop's first step is proportional to its rate."""
    moved = []
    for scale in (1.0, 0.25):
        solver, rule, _ = made()
        rule.step(training(0), scale)
        moved.append(solver.theta.detach() - 1)
    assert float((moved[0] - 4 * moved[1]).abs().max()) < 1e-12


def test_groups_are_clipped_by_themselves() -> None:
    solver, rule, _ = made(first_phase=0.0)
    rule.task = FitTask(rule.task.sample, squares, 5e-3, 1e-6, torch.Generator(), num_train=NUM)
    logs = rule.step(training(0), 1.0)
    for name in ("theta", "xi"):
        assert float(logs[f"grad_norm_{name}"]) > 1e-6
        norm = float(getattr(solver, name).grad.norm())
        assert norm == pytest.approx(1e-6, rel=0.02)  # clipping adds 1e-6 to the norm


def test_patience_brings_the_best_back_and_then_lowers_the_rates() -> None:
    solver, rule, _ = made()
    rule.step(training(0), 1.0)
    rule.validated(1.0)
    best = solver.theta.detach().clone()
    kept = offsets(rule).clone()
    rule.step(training(0), 1.0)
    for _ in range(4):
        rule.validated(2.0)
    assert not torch.equal(solver.theta, best)
    rule.validated(math.nan)
    assert torch.equal(solver.theta, best)
    assert torch.equal(offsets(rule), kept)
    assert rule.rates == {"theta": 5e-3, "xi": 0.1 / NFE}  # the first time without decay
    for _ in range(5):
        rule.validated(2.0)
    assert rule.rates == {"theta": 4e-3, "xi": 0.1 / NFE}  # the shifts do not train yet
    rule.iteration = ITERATIONS
    for _ in range(5):
        rule.validated(2.0)
    assert rule.rates == pytest.approx({"theta": 3.2e-3, "xi": 0.08 / NFE}, rel=1e-12)


def test_improvement_renews_patience() -> None:
    _, rule, _ = made()
    for k in range(20):
        rule.validated(2.0 if k % 4 else 1.0 / (k + 1))
    assert rule.stalls == 0


def test_rates_stop_at_their_minimum_and_end_the_fit() -> None:
    """Theta needs 21 decays and xi 47, which is its first one at the minimum; four more end it."""
    _, rule, _ = made()
    rule.iteration = ITERATIONS
    stalls = 0
    while not rule.finished:
        for _ in range(5):
            rule.validated(1.0)
        stalls += 1
    assert rule.rates == {"theta": 5e-5, "xi": 1e-6}
    decays = math.ceil(math.log(1e-6 / (0.1 / NFE)) / math.log(0.8))
    # the very first validation is an improvement, which costs a turn; the first stall is free
    assert stalls == 1 + 1 + decays + 4


def test_round_ends_with_validation_noise_moved_and_the_best_parameters() -> None:
    solver, rule, _ = made()
    rule.validated(1e-9)  # nothing is better
    start = solver.theta.detach().clone()
    rule.step(training(0), 1.0)
    after = mean_loss(solver, rule)
    rule.bad = 3
    moved = solver.theta.detach().clone()
    rule.round_ended(validation())
    assert rule.bad == 0
    assert torch.equal(solver.theta, start)
    assert rule.shift_lr == SHIFT_LR
    with torch.no_grad():
        solver.theta.copy_(moved)
    assert mean_loss(solver, rule) < after  # measured where the noise was moved


def test_round_that_moves_no_validation_pair_halves_the_step() -> None:
    _, rule, _ = made()
    rule.shift_lr = -SHIFT_LR  # uphill, so that nothing is accepted
    rule.round_ended(validation())
    assert rule.shift_lr == -SHIFT_LR / 2
    assert float(offsets(rule, "validation").abs().max()) == 0


@pytest.mark.parametrize("radius", [0.001, 0.0])
def test_end_of_a_round_is_a_validation_itself(radius: float) -> None:
    """Otherwise steps after the last validation would be thrown away unseen."""
    solver, rule, _ = made(radius=radius)
    rule.step(training(0), 1.0)
    after, theta = mean_loss(solver, rule), solver.theta.detach().clone()
    rule.best_loss = after + 1e-6
    rule.round_ended(validation())
    assert rule.best_loss == pytest.approx(after, rel=1e-12)
    assert torch.equal(solver.theta, theta)


def test_training_lowers_the_validation_loss() -> None:
    solver, rule, _ = made()
    before = mean_loss(solver, rule)
    advance(solver, rule, 0, ITERATIONS)
    assert rule.best_loss < 0.9 * before


@pytest.mark.parametrize("radius", [0.001, 0.0])
@pytest.mark.parametrize("stop", [1, 5, 8])
def test_resumed_run_ends_with_the_same_bits(tmp_path: Path, stop: int, radius: float) -> None:
    whole, rule, _ = made(radius=radius)
    advance(whole, rule, 0, ITERATIONS)
    first, early, _ = made(radius=radius)
    advance(first, early, 0, stop)
    path = tmp_path / "fit.safetensors"
    tensorfile.write(path, "test-1", early.state(), {})
    second, late, _ = made(radius=radius)
    second.load_state_dict(first.state_dict())
    late.load_state(tensorfile.read(path, "test-1")[0])
    advance(second, late, stop, ITERATIONS)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
    wanted, found = rule.state(), late.state()
    assert set(wanted) == set(found)
    for key, value in wanted.items():
        assert torch.equal(value, found[key])


def test_step_that_is_not_finite_changes_nothing() -> None:
    solver, rule, _ = made()
    before = {key: value.clone() for key, value in solver.state_dict().items()}
    batch = training(0)
    broken = Batch(batch.noise, batch.target * torch.nan, None, batch.rows)
    assert bool(rule.step(broken, 1.0)["loss"].isnan())
    for key, value in solver.state_dict().items():
        assert torch.equal(value, before[key])
    assert float(offsets(rule).abs().max()) == 0
    assert rule.groups[0].optimiser.state == {}
