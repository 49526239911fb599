"""The free table: what it starts as, what trains in it, and that training helps."""

import json
from typing import Any

import pytest
import torch

from solverbench import registry
from solverbench.backbones.gaussian import Gaussian
from solverbench.errors import SolverBenchError
from solverbench.schedule import VE, VPLinear, nodes
from solverbench.solvers import Batch, FitTask, Setting, integrate, sample
from solverbench.solvers.free import FreeTableau
from tests.problems import bound, gap

STARTS: list[tuple[str, int, dict[str, Any]]] = [
    ("dpmpp-3m", 6, {"schedule": "edm"}),
    ("unipc-3", 6, {}),
    ("heun", 5, {}),
    ("dpm-solver-2", 6, {}),
    ("ipndm-2", 6, {"afs": True}),
    ("gs", 6, {"history": 3}),
]


@pytest.mark.parametrize("frame", ["ve", "vp-linear", "vp-discrete-sd"])
@pytest.mark.parametrize("output", ["x0", "eps", "v"])
@pytest.mark.parametrize(("start", "nfe", "options"), STARTS)
def test_untrained_it_is_the_table_of_its_start(
    start: str, nfe: int, options: dict[str, Any], frame: str, output: str
) -> None:
    problem = Gaussian(frame=frame, output=output)
    found = bound(FreeTableau, problem, nfe, start=start, start_options=options).tableau()
    wanted = bound(registry.solvers.get(start), problem, nfe, **options).tableau()
    assert gap(found.A, wanted.A) < 1e-12
    assert gap(found.tau, wanted.tau) < 1e-12
    assert found.meta["t_min"] == wanted.meta["t_min"]


@pytest.mark.parametrize("frame", ["ve", "vp-linear"])
def test_table_and_formulas_give_one_sample_after_a_move(frame: str) -> None:
    problem = Gaussian(frame=frame)
    solver = moved(problem, 5)
    noise = problem.noise(range(3)).double()
    with torch.no_grad():
        direct = integrate(solver, problem, noise)
        assert gap(sample(problem, solver.tableau(), noise), direct) < 1e-12


def moved(problem: Gaussian, nfe: int, **options: Any) -> FreeTableau:
    solver = bound(FreeTableau, problem, nfe, **options)
    rng = torch.Generator().manual_seed(nfe)
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return solver


@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_every_entry_and_every_time_trains(nfe: int) -> None:
    problem = Gaussian()
    solver = moved(problem, nfe)
    final = sample(problem, solver.tableau(), problem.noise(range(4)).double())
    final.square().mean().backward()
    reached = sum(int(p.grad.count_nonzero()) for p in solver.parameters())
    assert reached == solver.num_used() == (nfe + 1) * (nfe + 2) // 2 + nfe


def test_the_same_entries_move_states_of_both_frames_alike() -> None:
    """For a network that gives data, a VE state is a VP state over alpha, up to rounding."""
    vp = VPLinear()
    times = nodes(vp, 4, "edm")
    levels = vp.shat(times)
    ve = VE(float(levels[-1]), float(levels[0]))
    entries = torch.randn(15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moves = []
    for schedule, t in ((vp, times), (ve, levels)):
        options = {"schedule": t.tolist()}
        solver = FreeTableau(Setting(schedule, 4), start_options=options)
        solver.entries.data.copy_(entries)
        moves.append(schedule.alpha(t)[:, None] ** -1 * (solver.coefficients() - solver.start.A))
    assert gap(moves[0], moves[1]) < 1e-12


def test_what_it_says_of_itself_can_be_written_down() -> None:
    options = {"start": "unipc-2", "start_options": {"schedule": "edm", "rho": 5.0}}
    solver = FreeTableau(Setting(Gaussian().schedule, 4), **options)
    assert json.loads(json.dumps(solver.tableau().meta))["options"] == {**options, "t_min": None}


def test_flags_of_the_start_stay() -> None:
    options = {"start": "ipndm-2", "start_options": {"afs": True}}
    assert FreeTableau(Setting(Gaussian().schedule, 4), **options).flags == ("afs",)


def test_the_last_time_reaches_the_start() -> None:
    solver = FreeTableau(Setting(Gaussian().schedule, 4), t_min=0.01)
    assert solver.tableau().meta["t_min"] == pytest.approx(0.01, rel=1e-15)
    assert float(solver.grid().t[-1].detach()) == pytest.approx(0.01, rel=1e-15)


def test_a_start_that_is_not_possible_is_refused_in_one_line() -> None:
    setting = Setting(Gaussian().schedule, 6)
    with pytest.raises(ValueError, match="its start heun says: heun needs an odd nfe"):
        FreeTableau(setting, start="heun")
    with pytest.raises(ValueError, match=r"its start unipc-3 says: .*colour"):
        FreeTableau(setting, start="unipc-3", start_options={"colour": "red"})
    with pytest.raises(SolverBenchError, match="unknown solver 'eulr'"):
        FreeTableau(setting, start="eulr")


@pytest.mark.parametrize("frame", ["ve", "vp-linear"])
def test_training_brings_it_closer_to_the_teacher(frame: str) -> None:
    problem = Gaussian(frame=frame)
    noise = problem.noise(range(64)).double()
    teacher = bound(registry.solvers.get("unipc-3"), problem, 40).tableau()
    with torch.no_grad():
        batch = Batch(noise, sample(problem, teacher, noise), None, torch.arange(64))
    solver = bound(FreeTableau, problem, 4)
    task = FitTask(
        sample=lambda tableau, noise, condition: sample(problem, tableau, noise, condition),
        distance=lambda student, target: (student - target).square().flatten(1).mean(1),
        lr=1e-2,
        clip=1.0,
        rng=torch.Generator(),
    )
    rule = solver.rule(task)
    losses = [float(rule.step(batch, 1.0)["loss"]) for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]  # measured: 0.02 (ve), 0.05 (vp-linear)
