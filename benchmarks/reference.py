"""The network that figures on a CPU refer to, the fits that train on it, and its bare passes.

An EDM-preconditioned DDPM++ of 1,033,507 parameters for 3 x 32 x 32: 32 channels, multipliers 1 and
2, two blocks a level, attention at 16. Its weights are random: a seed decides nothing about time.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverbench import tensorfile
from solverbench.backbones.edm import EDM
from solverbench.backbones.edm_files import FORMAT, Facts
from solverbench.backbones.edm_preconditioning import build
from solverbench.benchmark.distances import L2
from solverbench.benchmark.sampling import Samples
from solverbench.benchmark.spec import FitSpec
from solverbench.benchmark.training import Fit, Lesson
from solverbench.solvers.base import LearnableSolver, Setting
from solverbench.solvers.gs import GS

BATCH = 8  # of a training step
PARAMETERS = 1_033_507
KEYWORDS: dict[str, Any] = {
    "img_resolution": 32,
    "img_channels": 3,
    "label_dim": 0,
    "model_type": "SongUNet",
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_blocks": 2,
    "attn_resolutions": [16],
}
Work = Callable[[], object]


def write_network(path: Path) -> None:
    """Random weights of unit gain, as a file that the backbone ``edm`` reads."""
    rng, network = torch.Generator().manual_seed(0), build("EDMPrecond", KEYWORDS)
    tensors = {
        key: torch.randn(value.shape, generator=rng) / math.sqrt(math.prod(value.shape[1:]))
        for key, value in network.named_parameters()
    }
    assert sum(value.numel() for value in tensors.values()) == PARAMETERS
    tensors |= {key: torch.full(value.shape, 0.25) for key, value in network.named_buffers()}
    facts = Facts("EDMPrecond", KEYWORDS, 0.002, 80.0, "float32", "", "")
    tensorfile.write(path, FORMAT, tensors, facts._asdict())


def fit_of(
    weights: Path,
    memory: str,
    nfe: int,
    solver: type[LearnableSolver] = GS,
    batch: int = BATCH,
    **options: Any,
) -> Fit:
    """A fit with L2 on the reference network; targets are noise."""
    backbone = EDM(weights=str(weights))
    seeds = range(2 * batch)
    noise = backbone.noise(seeds)
    pairs = Samples(seeds, noise, noise.flip(0), None, 0.0, 0, 0.0, 0)
    spec = FitSpec(iterations=10_000, batch=batch, train_size=len(seeds), memory=memory)
    made = solver(Setting(backbone.schedule, nfe, backbone.output), **options)
    return Fit(made, Lesson(spec, 0, backbone, L2(backbone), pairs, pairs))


def bare_forward(network: torch.nn.Module, x: Tensor, nfe: int) -> Work:
    """``nfe`` forward passes on a tensor made beforehand, no graph."""
    sigma = torch.ones(())

    @torch.no_grad()
    def work() -> None:
        for _ in range(nfe):
            network(x, sigma)

    return work


def bare_gradients(network: torch.nn.Module, x: Tensor, nfe: int) -> Work:
    """``nfe`` forward passes and as many backward passes to the input, for a given slope."""
    sigma, x = torch.ones(()), x.clone().requires_grad_()
    slope = torch.ones_like(x)

    def work() -> None:
        for _ in range(nfe):
            torch.autograd.grad(network(x, sigma), x, slope)

    return work
