"""The closed form of GS and its kin against their own steps, traced."""

from typing import Any

import pytest
import torch

from solverbench.schedule import VE, NoiseSchedule, Output, TimeGrid, VPDiscrete, VPLinear
from solverbench.solvers import Setting, trace
from solverbench.solvers.base import Network, State
from solverbench.solvers.gs import GS
from solverbench.solvers.multipliers import GSNoTheory, S4SLMSGas, S4SPCGas
from solverbench.solvers.stick import StickMultistep
from tests.problems import gap

KINDS: list[type[StickMultistep]] = [GS, GSNoTheory, S4SLMSGas, S4SPCGas]
SCHEDULES: dict[str, NoiseSchedule] = {
    "ve": VE(),
    "vp-linear": VPLinear(),
    "vp-discrete": VPDiscrete(0.00085, 0.012),
}


def moved(kind: type[StickMultistep], setting: Setting, **options: Any) -> StickMultistep:
    """A solver away from its start, in every number that it has."""
    solver = kind(setting, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in solver.parameters():
            size = 1e-4 if p is solver.xi else 0.05
            p += size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return solver


def check_closed_form(solver: StickMultistep) -> None:
    """1e-11 of the largest coefficient, and of the largest gradient of each parameter."""
    found, wanted = solver.tableau(), trace(solver)
    assert found.meta == wanted.meta
    assert gap(found.A, wanted.A) < 1e-11
    assert torch.equal(found.tau, wanted.tau)
    assert torch.equal(found.nodes, wanted.nodes)
    assert not found.A.triu(1).any()  # exact zeros
    weights = torch.randn(
        found.A.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    parameters = list(solver.parameters())
    gradients = [
        torch.autograd.grad((weights * t.A).sum() + t.tau.square().sum(), parameters)
        for t in (found, wanted)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        if theirs.numel():
            assert gap(ours, theirs) < 1e-11


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("output", ["x0", "eps", "v"])
@pytest.mark.parametrize("frame", SCHEDULES)
def test_the_closed_form_is_that_of_the_steps(
    kind: type[StickMultistep], output: Output, frame: str
) -> None:
    check_closed_form(moved(kind, Setting(SCHEDULES[frame], 6, output)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nfe", [3, 4, 10])
@pytest.mark.parametrize(
    "options", [{"history": 3}, {"history": 4}, {"decoupled": False}, {"learn": "coefficients"}]
)
def test_the_closed_form_knows_every_option(
    kind: type[StickMultistep], nfe: int, options: dict[str, Any]
) -> None:
    check_closed_form(moved(kind, Setting(SCHEDULES["vp-linear"], nfe, "eps"), **options))


@pytest.mark.parametrize("kind", [GS, GSNoTheory, S4SLMSGas])
@pytest.mark.parametrize("nfe", [1, 2, 5])
@pytest.mark.parametrize("history", [1, 2])
def test_the_closed_form_of_a_short_past(
    kind: type[StickMultistep], nfe: int, history: int
) -> None:
    check_closed_form(moved(kind, Setting(SCHEDULES["ve"], nfe, "x0"), history=history))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_gradients_equal_times_leave_the_networks_own_estimate(
    kind: type[StickMultistep],
) -> None:
    """As ``trace`` does, which then reads ``x0`` off the network and does not compute it."""
    solver = kind(Setting(VPLinear(), 5, "x0"))
    assert gap(solver.tableau().A, trace(solver).A) < 1e-13


class Halved(GS):
    """A solver of somebody else, with steps of its own."""

    def integrate(self, x: State, grid: TimeGrid, network: Network) -> State:
        """Half of GS."""
        return super().integrate(x, grid, network) / 2


def test_a_subclass_with_steps_of_its_own_is_traced() -> None:
    setting = Setting(VPLinear(), 4, "x0")
    found, whole = Halved(setting).tableau().A, GS(setting).tableau().A
    assert gap(found[-1], whole[-1] / 2) < 1e-11
    assert gap(found[:-1], whole[:-1]) < 1e-11
