"""LPIPS, value and gradient, over the passes of its trunk."""

import pytest
import torch
from torch import Tensor

from benchmarks.reference import Work
from solverbench.benchmark.lpips import LPIPS, SIZE, STAGES, LPIPSNative, Trunk

SIDE = 32


class Images:
    """States are images."""

    def decode(self, x: Tensor) -> Tensor:
        return x


def bare(trunk: Trunk, batch: int, side: int) -> Work:
    """The trunk alone: the teacher's images without graph, the student's forward and back."""
    images = torch.rand(batch, 3, side, side)
    learned = images.clone().requires_grad_()
    slopes = [torch.ones_like(a) for a in trunk(images)]

    def work() -> None:
        with torch.no_grad():
            trunk(images)
        torch.autograd.grad(trunk(learned), learned, slopes)

    return work


def over_bare(side_by_side, kind: type, batch: int, side: int, rounds: int) -> float:
    """Base: the trunk at the size in which the distance uses it. Weights are random."""
    torch.manual_seed(0)
    heads = [torch.full((1, stage[-1], 1, 1), 0.1) for stage in STAGES]
    trunk = Trunk()
    distance = kind(Images(), trunk=trunk, heads=heads)
    student, target = torch.rand(2, batch, 3, SIDE, SIDE) * 2 - 1
    student.requires_grad_()

    def loss() -> None:
        torch.autograd.grad(distance(student, target).mean(), student)

    loss()  # it may change the trunk's layout in memory
    return side_by_side(loss, bare(trunk, batch, side), rounds)


def test_lpips_at_224_over_its_trunk(side_by_side) -> None:
    """Beside the trunk: activations to unit length, their difference. No limit; a figure."""
    over_bare(side_by_side, LPIPS, 1, SIZE, 5)


def test_lpips_at_32_over_its_trunk(side_by_side) -> None:
    over_bare(side_by_side, LPIPSNative, 8, SIDE, 9)


@pytest.mark.quick
def test_quick_lpips(side_by_side) -> None:
    """Compared with the baseline by ``regress.py``."""
    over_bare(side_by_side, LPIPSNative, 2, SIDE, 9)
