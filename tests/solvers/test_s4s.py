"""S4S: what it starts as, what it learns, in which order."""

import itertools
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from solverbench.backbones.gaussian import Gaussian
from solverbench.errors import SolverBenchError
from solverbench.schedule import nodes
from solverbench.solvers import Batch, FitTask, LearnableSolver, sample
from solverbench.solvers.dpmpp import DPMpp3M, phis
from solverbench.solvers.relaxed import Relaxed
from solverbench.solvers.s4s import S4S, S4SPC, Alternating, S4SAlt
from solverbench.solvers.unipc import UniPC3
from tests.problems import bound, gap

KINDS = [S4S, S4SPC, S4SAlt]
BASES = {S4S: DPMpp3M, S4SPC: UniPC3, S4SAlt: DPMpp3M}
GRIDS = {"logsnr": "logsnr", "time": "time-uniform"}
NUM = 8  # pairs: two batches a round


@pytest.mark.parametrize("full_order", [False, True])
@pytest.mark.parametrize("space", ["logsnr", "time"])
@pytest.mark.parametrize("frame", ["ve", "vp-linear"])
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_untrained_it_is_the_solver_that_it_starts_from(
    kind: type[S4S], nfe: int, frame: str, space: str, full_order: bool
) -> None:
    """1e-10 of the largest entry; rows of the tables are sums of a few rounded terms."""
    problem = Gaussian(frame=frame)
    found = bound(kind, problem, nfe, space=space, full_order=full_order).tableau()
    wanted = bound(
        BASES[kind], problem, nfe, schedule=GRIDS[space], lower_order_final=False
    ).tableau()
    assert gap(found.A, wanted.A) < 1e-10
    assert gap(found.tau, wanted.tau) < 1e-10


def test_coefficients_start_as_the_written_ones() -> None:
    """The formulas of order 1, 2, 3 for unequal steps; 1e-12 for sums of small quotients."""
    problem = Gaussian()
    solver = bound(S4S, problem, 4, space="time")
    h = problem.schedule.lam(nodes(problem.schedule, 4, "time-uniform")).diff()
    assert gap(solver.c[:, 0], [1.0, 0.0, 0.0]) < 1e-12
    r0 = float(h[0] / h[1])
    assert gap(solver.c[:, 1], [1 + 1 / (2 * r0), -1 / (2 * r0), 0.0]) < 1e-12
    for n in (2, 3):
        f1, f2, f3 = (float(f) for f in phis(h[n]))
        r0, r1 = float(h[n - 1] / h[n]), float(h[n - 2] / h[n])
        A, C, w = -f2 / f1, f3 / f1, r0 / (r0 + r1)
        P, Q = A * (1 + w) + C / (r0 + r1), -A * w - C / (r0 + r1)
        assert gap(solver.c[:, n], [1 + P / r0, -P / r0 + Q / r1, -Q / r1]) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_of_every_step_start_with_sum_one(kind: type[S4S]) -> None:
    """So that a constant prediction is met exactly; 1e-12 for weights of order ten."""
    solver = bound(kind, Gaussian(), 6, full_order=True)
    for table in (solver.c, getattr(solver, "cc", solver.c)):
        assert gap(table.sum(0), [1.0] * table.shape[1]) < 1e-12


@pytest.mark.parametrize(
    ("kind", "nfe", "used"),
    [
        (S4S, 1, 1),
        (S4S, 4, 9 + 3),
        (S4S, 10, 27 + 9),
        (S4SPC, 4, 9 + 9 + 3),
        (S4SPC, 10, 27 + 33 + 9),
        (S4SAlt, 4, 9 + 3 + 4),
        (S4SAlt, 10, 27 + 9 + 10),
    ],
)
def test_numbers_are_those_of_the_specification(kind: type[S4S], nfe: int, used: int) -> None:
    assert bound(kind, Gaussian(), nfe).num_used() == used


@pytest.mark.parametrize("options", [{}, {"full_order": True}, {"conversion": "node"}])
@pytest.mark.parametrize("nfe", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_every_used_number_and_no_other(
    kind: type[S4S], nfe: int, options: dict[str, Any]
) -> None:
    problem = Gaussian()
    solver = bound(kind, problem, nfe, **options)
    assert isinstance(solver, S4S)
    rng = torch.Generator().manual_seed(nfe)
    for parameter in solver.parameters():
        parameter.data += 1e-3 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    final = sample(problem, solver.tableau(), problem.noise(range(4)).double())
    final.square().mean().backward()
    grads = [p.grad for p in solver.parameters() if p.grad is not None]
    assert sum(int(grad.count_nonzero()) for grad in grads) == solver.num_used()
    lag, step = torch.meshgrid(torch.arange(solver.kept), torch.arange(nfe), indexing="ij")
    assert bool((solver.c.grad[lag > step] == 0).all())
    if isinstance(solver, S4SPC) and nfe > 1:
        lag, step = torch.meshgrid(
            torch.arange(solver.kept + 1), torch.arange(nfe - 1), indexing="ij"
        )
        assert bool((solver.cc.grad[lag > step + 1] == 0).all())


def test_nodes_are_no_parameter_unless_they_are_learned() -> None:
    problem = Gaussian()
    names = {"xi", "c"}
    assert {name for name, _ in bound(S4S, problem, 4).named_parameters()} == names
    learned = bound(S4S, problem, 4, learn_times=True)
    assert {name for name, _ in learned.named_parameters()} == names | {"theta"}
    assert {g.name for g in learned.rule(task()).groups} == names | {"theta"}
    coupled = bound(S4S, problem, 4, decoupled=False)
    assert [g.name for g in coupled.rule(task()).groups] == ["c"]


def test_network_times_move_and_nodes_stay() -> None:
    problem = Gaussian()
    solver = bound(S4S, problem, 4)
    before = solver.grid()
    solver.xi.data[1:-1] += 0.1
    after = solver.grid()
    assert torch.equal(before.t, after.t)
    moved = problem.schedule.lam(after.t_eval) - before.lam[:-1]
    assert gap(moved[1:], [0.1] * 3) < 1e-9  # lambda of an inverse of lambda
    assert float(moved[0].detach()) == 0


def task(iterations: int = 40) -> FitTask:
    problem = Gaussian()
    return FitTask(
        sample=lambda tableau, noise, condition: sample(problem, tableau, noise, condition),
        distance=lambda student, target: (student - target).square().flatten(1).mean(1),
        lr=5e-3,
        clip=1.0,
        rng=torch.Generator(),
        iterations=iterations,
        round_length=2,
        num_train=NUM,
        num_validation=NUM,
    )


@cache
def pairs() -> tuple[Tensor, Tensor]:
    """Noise and what a teacher of 40 calls makes of it."""
    problem = Gaussian()
    noise = problem.noise(range(NUM)).double()
    return noise, sample(problem, bound(DPMpp3M, problem, 40).tableau(), noise)


def batches(rows: int = NUM // 2) -> list[Batch]:
    noise, target = pairs()
    return [Batch(noise[part], target[part], None, part) for part in torch.arange(NUM).split(rows)]


@torch.no_grad()
def distance(solver: LearnableSolver) -> float:
    (batch,) = batches(NUM)
    given = task()
    found = given.sample(solver.tableau(), batch.noise, None)
    return float(given.distance(found, batch.target).mean())


def train(rule: Relaxed, start: int, stop: int) -> None:
    """As the harness does it: steps, ends of rounds, a validation after each step."""
    parts = batches()
    for i in range(start, stop):
        rule.step(parts[i % len(parts)], 1.0)
        rule.validated(distance(rule.solver))
        if (i + 1) % len(parts) == 0:
            rule.round_ended(parts)


@pytest.mark.parametrize("radius", [0.0, 0.001])
@pytest.mark.parametrize("kind", KINDS)
def test_training_brings_samples_nearer_to_the_teacher(kind: type[S4S], radius: float) -> None:
    """Measured to fall to at most 0.076 of the start in 40 steps."""
    solver = bound(kind, Gaussian(), 4, radius=radius)
    before = distance(solver)
    train(solver.rule(task()), 0, 40)
    assert distance(solver) < 0.2 * before


def test_joint_training_moves_everything_from_the_first_step_on() -> None:
    solver = bound(S4SAlt, Gaussian(), 4, joint=True)
    before = {key: p.detach().clone() for key, p in solver.named_parameters()}
    rule = solver.rule(task())
    rule.step(batches()[0], 1.0)
    assert type(rule) is Relaxed
    assert all(not torch.equal(before[key], p) for key, p in solver.named_parameters())


def test_only_whose_turn_it_is_changes() -> None:
    """Two turns of logits, then coefficients and times one after the other, each of three steps."""
    solver = bound(S4SAlt, Gaussian(), 4, phase=3)
    rule, batch = solver.rule(task()), batches()[0]
    moved = []
    for _ in range(18):
        before = {key: p.detach().clone() for key, p in solver.named_parameters()}
        rule.step(batch, 1.0)
        moved.append({k for k, p in solver.named_parameters() if not torch.equal(before[k], p)})
    turns = [{"theta"}, {"theta"}, {"c"}, {"theta", "xi"}, {"c"}, {"theta", "xi"}]
    assert moved == list(itertools.chain.from_iterable([turn] * 3 for turn in turns))


@pytest.mark.parametrize(("iterations", "length"), [(4, 1), (19, 1), (40, 4), (300, 30)])
def test_a_turn_is_a_tenth_of_the_budget_unless_said_otherwise(
    iterations: int, length: int
) -> None:
    phase = bound(S4SAlt, Gaussian(), 4).rule(task(iterations)).phase
    last = [phase(k * length - 1) for k in (1, 2, 3, 4)]
    first = [phase(k * length) for k in (0, 1, 2, 3)]
    assert first == last == [("theta",), ("theta",), ("c",), ("theta", "xi")]


@pytest.mark.parametrize(("phase", "iterations", "least"), [(None, 3, 4), (11, 43, 44)])
def test_a_budget_without_a_whole_pair_of_turns_is_refused(
    phase: int | None, iterations: int, least: int
) -> None:
    solver = bound(S4SAlt, Gaussian(), 4, phase=phase)
    with pytest.raises(SolverBenchError, match=f"needs {least} iterations .* is {iterations}"):
        solver.rule(task(iterations))
    assert isinstance(solver.rule(task(least)), Alternating)


def test_a_validation_is_wanted_at_the_end_of_each_turn_and_by_no_other_rule() -> None:
    rule, wanted = alternating(3), []
    other = bound(S4S, Gaussian(), 2).rule(task())
    for i in range(1, 13):
        rule.step(batches()[0], 1.0)
        other.step(batches()[0], 1.0)
        wanted += [i] if rule.wants_validation else []
        assert not other.wants_validation
    assert wanted == [3, 6, 9, 12]


@pytest.mark.parametrize(
    ("kind", "options", "title"),
    [
        (S4S, {}, "S4S (re-implementation)"),
        (S4S, {"learn_times": True}, "S4S (learned times) (re-implementation)"),
        (S4SPC, {"full_order": True}, "S4S, LMS+PC (full order) (re-implementation)"),
        (S4SAlt, {"space": "time"}, "S4S-Alt (re-implementation)"),
        (S4SAlt, {"joint": True}, "S4S-Alt (joint) (re-implementation)"),
        (
            S4SAlt,
            {"joint": True, "full_order": True},
            "S4S-Alt (joint, full order) (re-implementation)",
        ),
    ],
)
def test_titles_tell_variants_apart(kind: type[S4S], options: dict[str, Any], title: str) -> None:
    assert bound(kind, Gaussian(), 4, **options).title == title


def alternating(phase: int = 1) -> Alternating:
    rule = bound(S4SAlt, Gaussian(), 2, phase=phase, radius=0.0).rule(task())
    assert isinstance(rule, Alternating)
    return rule


def steps_until_finished(rule: Alternating, losses: list[float]) -> int:
    batch = batches()[0]
    rule.validated(losses[0])
    for i, loss in enumerate(losses, 1):
        rule.step(batch, 1.0)
        if rule.finished:
            return i
        rule.validated(loss)
        if rule.finished:
            return i
    return 0


def test_eight_pairs_of_turns_are_the_most() -> None:
    falling = [1.0 / (i + 1) for i in range(40)]
    assert steps_until_finished(alternating(), falling) == 2 + 16
    assert steps_until_finished(alternating(2), falling) == 2 * (2 + 16)


@pytest.mark.parametrize(("better", "end"), [(2, 6), (3, 8), (6, 10)])
def test_two_pairs_in_vain_end_the_fit(better: int, end: int) -> None:
    """The first turns are over after two steps; a pair takes two more."""
    losses = [1.0 if i < better else 0.5 for i in range(1, 30)]
    assert steps_until_finished(alternating(), losses) == end


@pytest.mark.parametrize("kind", KINDS)
def test_training_state_continues_with_the_same_bits(kind: type[S4S]) -> None:
    def fresh() -> tuple[LearnableSolver, Relaxed]:
        options = {"phase": 1} if kind is S4SAlt else {}
        solver = bound(kind, Gaussian(), 3, **options)
        assert isinstance(solver, S4S)
        return solver, solver.rule(task())

    (whole, rule), (first, early), (second, late) = fresh(), fresh(), fresh()
    train(rule, 0, 9)
    train(early, 0, 5)
    state = {key: value.clone() for key, value in early.state().items()}
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    late.load_state(state)
    train(late, 5, 9)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
    assert rule.state().keys() == late.state().keys()
    assert all(torch.equal(value, late.state()[key]) for key, value in rule.state().items())
    assert rule.finished == late.finished


def test_a_fit_that_was_over_is_over_when_it_is_loaded() -> None:
    rule, again = alternating(), alternating()
    steps_until_finished(rule, [1.0] * 20)
    again.load_state(rule.state())
    assert again.finished


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phase": 0}, "phase is at least 1 iteration; got 0"),
        ({"radius": -1.0}, "radius is a finite number of at least 0; got -1.0"),
        ({"theta_lr": float("nan")}, "theta_lr is a finite number of at least 0; got nan"),
        ({"xi_lr": -0.1}, "xi_lr is a finite number of at least 0; got -0.1"),
        ({"shift_lr": float("inf")}, "shift_lr is a finite number of at least 0; got inf"),
        ({"space": "sigma"}, "space is 'sigma'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bound(S4SAlt, Gaussian(), 4, **options)
