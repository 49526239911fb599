"""Orders of convergence, and what must be equal to what."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from solverbench import registry
from solverbench.schedule import VE, Output, VPLinear
from solverbench.solvers import Setting, Solver, integrate
from solverbench.solvers.adams import Adams2, Adams3, lagrange, quadrature
from solverbench.solvers.ddim import DDIM
from solverbench.solvers.dpmpp import DPMpp2M, DPMpp3M, DPMpp3MExact, phis
from solverbench.solvers.gs import GS
from solverbench.solvers.heun import DPMSolver2, Heun
from solverbench.solvers.ipndm import IPNDM1, IPNDM2, IPNDM4
from solverbench.solvers.stick import StickMultistep
from solverbench.solvers.stored import Stored
from solverbench.solvers.unipc import UniPC2, UniPC3
from tests.problems import bound, gap, line, vectors

ONE_GRID = [  # GS and its kin start time-uniform, which is another grid in another frame
    name for name, kind in registry.solvers.items() if not issubclass(kind, StickMultistep | Stored)
]
CONSISTENT = [
    name for name, kind in registry.solvers.items() if kind.consistent and kind is not Stored
]
NO_LOF = {"lower_order_final": False}
ORDERS: list[tuple[type[Solver], dict[str, Any], float, float]] = [
    (DDIM, {}, 1.00, 0.15),
    (Heun, {"final_euler": False}, 2.02, 0.15),
    (DPMSolver2, {}, 2.01, 0.15),
    (DPMpp2M, NO_LOF, 2.01, 0.15),
    (DPMpp3M, NO_LOF, 1.99, 0.15),
    (DPMpp3MExact, NO_LOF, 3.0, 0.15),
    (UniPC2, NO_LOF, 2.99, 0.15),
    (UniPC2, {**NO_LOF, "variant": "bh2"}, 2.99, 0.15),
    (UniPC3, NO_LOF, 4.05, 0.15),
    (UniPC3, {**NO_LOF, "variant": "bh2"}, 4.05, 0.15),
    (IPNDM2, {}, 2.0, 0.15),
    (IPNDM4, {}, 2.0, 0.15),
    (Adams2, {}, 1.97, 0.3),
    (Adams3, {}, 2.9, 0.3),
]


def error(kind: type[Solver], num_steps: int, **options: Any) -> float:
    problem, z = line()
    nfe = num_steps * (2 if kind in (Heun, DPMSolver2) else 1)
    final = integrate(bound(kind, problem, nfe, **options), problem, z).flatten()
    return float((final - torch.tensor(vectors()["exact_ve"], dtype=torch.float64)).abs().max())


@pytest.mark.parametrize(("kind", "options", "order", "tolerance"), ORDERS)
def test_error_falls_at_the_expected_rate(
    kind: type[Solver], options: dict[str, Any], order: float, tolerance: float
) -> None:
    """Orders as measured with these formulas elsewhere; iPNDM's equal weights keep it at 2."""
    rate = math.log2(error(kind, 256, **options) / error(kind, 512, **options))
    assert rate == pytest.approx(order, abs=tolerance)


def first_order(kind: type[Solver]) -> type[Solver]:
    return type("FirstOrder", (kind,), {"order": 1})


class UniP1(UniPC2):
    order = 1

    def correct(self, x: Tensor, i: int, grid: Any, history: Any, m: Tensor) -> Tensor:
        """No correction."""
        return self.update(x, i, grid, history)


@pytest.mark.parametrize("frame", ["ve", "vp-linear"])
@pytest.mark.parametrize(
    "kind", [IPNDM1, first_order(DPMpp2M), first_order(DPMpp3M), first_order(Adams2), UniP1]
)
def test_order_one_of_every_family_is_ddim(kind: type[Solver], frame: str) -> None:
    problem, _ = line(frame)
    wanted = bound(DDIM, problem, 5).tableau().A
    assert gap(bound(kind, problem, 5).tableau().A, wanted) < 1e-12


def test_dpmpp_3m_with_four_steps_is_2m() -> None:
    problem, _ = line("vp-linear")
    pair = (bound(kind, problem, 4).tableau().A for kind in (DPMpp3M, DPMpp2M))
    assert torch.equal(*pair)


def test_unipc_3_with_four_steps_is_unipc_2() -> None:
    problem, _ = line("vp-linear")
    pair = (bound(kind, problem, 4).tableau().A for kind in (UniPC3, UniPC2))
    assert torch.equal(*pair)


def test_gs_without_corrections_is_dpmpp_3m_without_lower_order_final() -> None:
    problem, _ = line("vp-linear")
    for nfe in (1, 2, 3, 4, 6, 10):
        wanted = bound(DPMpp3M, problem, nfe, schedule="time-uniform", lower_order_final=False)
        assert gap(bound(GS, problem, nfe).tableau().A, wanted.tableau().A) < 1e-10


def test_adams_on_equal_steps_has_the_weights_of_ipndm() -> None:
    times = [80.0, 60.5, 41.0, 21.5, 2.0]
    problem, _ = line()
    pair = [bound(kind, problem, 4, schedule=times).tableau().A for kind in (Adams2, IPNDM2)]
    assert gap(*pair) < 1e-13


def test_lagrange_weights_integrate_polynomials_exactly() -> None:
    """Four nodes reproduce a cubic; the quadrature is exact for it."""
    known = torch.tensor([2.0, 3.0, 5.0, 9.0], dtype=torch.float64)
    start, end = known[0], torch.tensor(1.5, dtype=torch.float64)
    s, ds = quadrature(start, end, 4)
    weights = lagrange(known, s) @ ds
    integral = (end**4 - start**4) / 4 - (end**2 - start**2)
    assert float(weights @ (known**3 - 2 * known)) == pytest.approx(float(integral), rel=1e-12)


def test_series_and_quotients_of_phi_meet_at_the_seam() -> None:
    """1e-8: what the quotient for phi_3 loses at h = 1e-3."""
    below, above = (phis(torch.tensor(1e-3 * s, dtype=torch.float64)) for s in (1 - 1e-12, 1.0))
    for a, b in zip(below, above, strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-8)


@pytest.mark.parametrize("output", ["x0", "eps", "v"])
@pytest.mark.parametrize("name", ONE_GRID)
def test_ve_and_vp_frames_are_one_method(name: str, output: str) -> None:
    """On equal lambda grids x / alpha is the same; 1e-10: alpha_T amplifies rounding by 150."""
    kind, nfe = registry.solvers.get(name), 6 if name == "dpm-solver-2" else 7
    vp, z = line("vp-linear", output)
    ve, _ = line("ve", output)
    high, low = float(vp.schedule.shat(1.0)), float(vp.schedule.shat(1e-3))
    ve.schedule = VE(low, high)
    flat = integrate(bound(kind, ve, nfe), ve, z * math.sqrt(1 + high**2) / high)
    curved = integrate(bound(kind, vp, nfe), vp, z) / vp.schedule.alpha(1e-3)
    assert gap(curved, flat) < 1e-10


class Constant:
    """A denoiser that always answers the same image."""

    state_shape, t_floor = (1, 1, 1), 1e-3

    def __init__(self, output: Output) -> None:
        self.schedule, self.output = VPLinear(), output
        self.x0 = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)

    def evaluate(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        """The image, as ``output`` says."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        eps = (x - alpha * self.x0) / sigma
        outputs = {"x0": self.x0.expand_as(x), "eps": eps, "v": alpha * eps - sigma * self.x0}
        return outputs[self.output]


@pytest.mark.parametrize("output", ["x0", "eps", "v"])
@pytest.mark.parametrize("name", CONSISTENT)
def test_constant_denoiser_is_solved_exactly(name: str, output: Output) -> None:
    """1e-10: alpha_T = 0.0066 amplifies rounding where data is formed from noise."""
    problem, nfe = Constant(output), 4 if name == "dpm-solver-2" else 5
    schedule, z = problem.schedule, torch.linspace(-1, 1, 4, dtype=torch.float64)
    solver = registry.solvers.get(name)(Setting(schedule, nfe, output))
    x = z[:, None, None, None]
    ratio = schedule.sigma(1e-3) / schedule.sigma(1.0)
    wanted = ratio * x + (schedule.alpha(1e-3) - ratio * schedule.alpha(1.0)) * problem.x0
    assert gap(integrate(solver, problem, x), wanted) < 1e-10


def test_only_the_baseline_that_says_so_is_inconsistent() -> None:
    assert set(registry.solvers.names()) - set(CONSISTENT) == {"s4s-pc-gas", "stored"}
