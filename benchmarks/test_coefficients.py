"""The pass of coefficients with its gradient, beside one call of the network."""

import statistics
import time

import pytest
import torch

from benchmarks.reference import BATCH, forward
from solverbench.backbones.edm import EDM
from solverbench.schedule import VPDiscrete, VPLinear
from solverbench.solvers.base import Setting
from solverbench.solvers.gs import GS

NFE, ROUNDS, PASSES = 10, 9, 12
LIMIT = 3e-3  # processor seconds on one core
SCHEDULES = {"linear": VPLinear(), "discrete": VPDiscrete(0.00085, 0.012)}


def measured(side_by_side, benchmark, reference, schedule: str) -> float:
    """Base: one forward pass of the reference network, batch 8; work: twelve passes.

    The first after the network finds its caches taken by it; both medians are recorded.
    """
    solver, backbone = GS(Setting(SCHEDULES[schedule], NFE, "x0")), EDM(weights=str(reference))
    seconds = list[float]()

    def coefficients() -> None:
        for _ in range(PASSES):
            start = time.process_time()
            tableau = solver.tableau()
            torch.autograd.backward([tableau.A.sum(), tableau.tau.sum()])
            seconds.append(time.process_time() - start)

    base = forward(backbone.network, 1, backbone.noise(range(BATCH)))
    side_by_side(coefficients, base, ROUNDS, "unlike")
    median, first = statistics.median(seconds), statistics.median(seconds[::PASSES])
    benchmark.extra_info |= {"seconds": median, "seconds_after_the_network": first}
    return median


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_coefficients_and_their_gradient_take_three_milliseconds(
    side_by_side, benchmark, reference, schedule
) -> None:
    """An absolute time: for a quiet machine."""
    assert measured(side_by_side, benchmark, reference, schedule) <= LIMIT


@pytest.mark.quick
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_quick_coefficients_and_their_gradient(
    side_by_side, benchmark, reference, schedule
) -> None:
    """Compared with the baseline by ``regress.py``."""
    measured(side_by_side, benchmark, reference, schedule)
