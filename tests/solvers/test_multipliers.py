"""GS without theory, and S4S as the GAS paper trains it, against the reference implementation."""

from collections.abc import Iterator

import pytest
import torch

from solverbench.backbones.gaussian import Gaussian
from solverbench.benchmark.conformance import check_solver
from solverbench.schedule import VPLinear
from solverbench.solvers import LearnableSolver, Setting, sample
from solverbench.solvers.dpmpp import DPMpp3M
from solverbench.solvers.gs import GS
from solverbench.solvers.multipliers import GSNoTheory, S4SLMSGas, S4SPCGas
from tests.problems import bound, edm, gap, golden

GOLDENS: dict[str, type[LearnableSolver]] = {"gs_no_theory": S4SPCGas, "s4s_lms": S4SLMSGas}
ALL = [GSNoTheory, S4SLMSGas, S4SPCGas]
PARAMETERS = {"mu_logit": "theta", "xi": "xi", "c": "c", "a": "a"}


def cases() -> Iterator[tuple[str, str]]:
    for name in GOLDENS:
        yield from (
            (name, key.removesuffix("__final")) for key in golden(name) if key.endswith("__final")
        )


def solver_of(name: str, prefix: str) -> LearnableSolver:
    nfe, _, history = prefix.split("__")[1].removeprefix("nfe").partition("_hist")
    kept = int(history) if history else None
    return bound(GOLDENS[name], edm(), int(nfe), history=kept)


def test_goldens_cover_what_they_should() -> None:
    assert len(list(cases())) == 9
    assert sum("hist" in prefix for _, prefix in cases()) == 5


@pytest.mark.parametrize(("name", "prefix"), [c for c in cases() if "init" in c[1]])
def test_initial_multipliers_are_those_of_the_reference(name: str, prefix: str) -> None:
    solver, data = solver_of(name, prefix), golden(name)
    for theirs, ours in PARAMETERS.items():
        if f"{prefix}__{theirs}" in data:
            wanted = data[f"{prefix}__{theirs}"]
            assert float((getattr(solver, ours).detach() - wanted).abs().max()) < 1e-10


@pytest.mark.parametrize(("name", "prefix"), list(cases()))
def test_samples_losses_and_gradients_meet_the_reference(name: str, prefix: str) -> None:
    """1e-9 on samples and losses, 1e-8 on gradients, relative to the largest entry."""
    data, problem, solver = golden(name), edm(), solver_of(name, prefix)
    with torch.no_grad():
        for theirs, ours in PARAMETERS.items():
            if f"{prefix}__{theirs}" in data:
                getattr(solver, ours).copy_(data[f"{prefix}__{theirs}"])
    assert gap(solver.grid().t, data[f"{prefix}__timesteps"]) < 1e-12
    final = sample(problem, solver.tableau(), problem.noise)
    assert gap(final, data[f"{prefix}__final"]) < 1e-9
    losses = (final - golden("gs_random")["edm__target"]).square().flatten(1).mean(1)
    assert gap(losses, data[f"{prefix}__loss_per_sample"]) < 1e-9
    losses.mean().backward()
    for theirs, ours in PARAMETERS.items():
        if f"{prefix}__grad_{theirs}" in data:
            assert gap(getattr(solver, ours).grad, data[f"{prefix}__grad_{theirs}"]) < 1e-8


@pytest.mark.parametrize("frame", ["ve", "vp-linear", "vp-discrete-sd"])
@pytest.mark.parametrize("kind", [GSNoTheory, S4SLMSGas])
@pytest.mark.parametrize("nfe", [1, 2, 3, 7])
def test_untrained_they_are_dpmpp_without_lower_order_at_the_end(
    kind: type[LearnableSolver], nfe: int, frame: str
) -> None:
    """1e-10 relative to the largest coefficient; large ones cancel in the VE frame."""
    problem = Gaussian(frame=frame)
    found = bound(kind, problem, nfe).tableau()
    options = {"schedule": "time-uniform", "lower_order_final": False}
    assert gap(found.A, bound(DPMpp3M, problem, nfe, **options).tableau().A) < 1e-10


def test_one_that_scales_twice_says_that_it_is_inconsistent() -> None:
    problem = Gaussian()
    solver = bound(S4SPCGas, problem, 6)
    assert not solver.consistent
    assert solver.flags == ("inconsistent at initialisation, for reproduction only",)
    exact = bound(S4SLMSGas, problem, 6).tableau().A
    assert gap(solver.tableau().A, exact) > 0.1


def test_conformance_lets_it_pass_only_because_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    title = "error vanishes under refinement"
    (noted,) = [check for check in check_solver("s4s-pc-gas") if check.title == title]
    assert noted.passed
    assert noted.detail.startswith("not asked of it: it declares itself inconsistent")
    monkeypatch.setattr(S4SPCGas, "flags", ())
    assert [check.title for check in check_solver("s4s-pc-gas") if not check.passed] == [title]
    monkeypatch.setattr(S4SPCGas, "consistent", True)
    assert [check.title for check in check_solver("s4s-pc-gas") if not check.passed] == [title]


@pytest.mark.parametrize(("nfe", "history"), [(1, None), (2, None), (5, 2)])
def test_pc_needs_three_steps_of_history(nfe: int, history: int | None) -> None:
    with pytest.raises(ValueError, match="nfe and history must be at least 3; got a history of"):
        S4SPCGas(Setting(VPLinear(), nfe), history=history)


@pytest.mark.parametrize("nfe", [4, 5, 6, 10])
def test_without_theory_there_are_as_many_numbers_as_with_it(nfe: int) -> None:
    setting = Setting(VPLinear(), nfe)
    counts = [kind(setting).num_used() for kind in (GS, GSNoTheory, S4SPCGas)]
    assert len(set(counts)) == 1
    assert S4SLMSGas(setting).num_used() == counts[0] - nfe * (nfe + 1) // 2


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("history", [None, 3])
def test_gradient_reaches_every_used_number_and_no_other(
    kind: type[LearnableSolver], history: int | None
) -> None:
    problem = Gaussian()
    solver = bound(kind, problem, 5, history=history)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in solver.parameters():
            noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            parameter += 0.003 * noise
    final = sample(problem, solver.tableau(), problem.noise(range(4)).double())
    final.square().mean().backward()
    moved = sum(int((p.grad != 0).sum()) for p in solver.parameters())
    assert moved == solver.num_used()
    tables = [p for p in solver.parameters() if p.dim() == 2]
    lag, step = torch.meshgrid(torch.arange(len(tables[0])), torch.arange(5), indexing="ij")
    for table in tables:
        assert bool((table.grad[lag > step] == 0).all())
        assert bool((table[lag > step].abs() < 0.02).all())
