"""What a kept teacher half of LPIPS saves: of the loss, and of a GS step with that loss."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from solverbench.benchmark.lpips import STAGES, LPIPSNative, Trunk
from solverbench.benchmark.target_cache import TargetCache
from solverbench.solvers.tableau import sample

NFE = 4
BUDGET = 2**30  # bytes; holds every row
SIDE, BATCH = 32, 24  # of CIFAR10 and its training
Compare = Callable[[Tensor, Tensor, Tensor], Tensor]


class Images:
    """States are images."""

    def decode(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture(scope="module")
def distance() -> LPIPSNative:
    """Random weights: as slow as published ones."""
    torch.manual_seed(0)
    heads = [torch.full((1, stage[-1], 1, 1), 0.1) for stage in STAGES]
    return LPIPSNative(Images(), trunk=Trunk(), heads=heads)


def test_a_kept_teacher_saves_a_third_of_lpips(side_by_side, distance) -> None:
    """Base: value and gradient with the teacher's half computed; that is one of three passes."""
    rng = torch.Generator().manual_seed(0)
    student, target = torch.rand(2, BATCH, 3, SIDE, SIDE, generator=rng) * 2 - 1
    student.requires_grad_()
    cache, rows = TargetCache(distance, BUDGET), torch.arange(BATCH)

    def kept() -> None:
        torch.autograd.grad(cache.distances(student, target, rows).mean(), student)

    def computed() -> None:
        torch.autograd.grad(distance(student, target).mean(), student)

    assert side_by_side(kept, computed, 10) <= 0.75


def test_a_gs_step_with_lpips_is_quicker_where_the_teacher_is_kept(
    side_by_side, make_fit, distance
) -> None:
    """Base: the step on the cifar16 network, batch 16, that computes the teacher's half."""
    fit, cache = make_fit("store", NFE), TargetCache(distance, BUDGET)
    backbone, pairs, solver = fit.lesson.backbone, fit.lesson.train, fit.solver
    optimiser, rows = torch.optim.Adam(solver.parameters()), torch.arange(fit.spec.batch)
    noise, condition, target = pairs.noise[rows], pairs.condition[rows], pairs.states[rows]

    def step(compare: Compare) -> None:
        student = sample(backbone, solver.tableau(), noise, condition, "store")
        optimiser.zero_grad()
        compare(student, target, rows).mean().backward()
        optimiser.step()

    def computed() -> None:
        step(lambda student, target, rows: distance(student, target))

    assert side_by_side(lambda: step(cache.distances), computed, 15) <= 0.97
