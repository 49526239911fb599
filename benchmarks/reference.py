"""The network that figures on a CPU refer to, its discriminator, fits, and both networks' passes.

An EDM-preconditioned DDPM++ of 1,033,507 parameters for 3 x 32 x 32: 32 channels, multipliers 1 and
2, two blocks a level, attention at 16. Its weights are random: a seed decides nothing about time.

The discriminator stands to it as R3GAN's for 32 x 32 stands to EDM's network of CIFAR10: a third of
the arithmetic (of a forward pass 0.30 GFLOP beside 0.87; there 14.1 beside 42.4), in the same
shape, 88 channels wide instead of 768.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from solverbench import discriminator, tensorfile
from solverbench.backbones.edm import EDM
from solverbench.backbones.edm_files import FORMAT, Facts
from solverbench.backbones.edm_preconditioning import build
from solverbench.benchmark.distances import L2
from solverbench.benchmark.sampling import Samples
from solverbench.benchmark.spec import FitSpec
from solverbench.benchmark.training import Fit, Lesson
from solverbench.discriminator import R3GANDiscriminator, Sizes, discriminator_gradient
from solverbench.solvers.base import LearnableSolver, Setting
from solverbench.solvers.gs import GS
from solverbench.solvers.tableau import Memory

BATCH = 8  # of a training step
PARAMETERS = 1_033_507
DISCRIMINATOR = Sizes((88,) * 4, (11,) * 4, (2,) * 4)
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


def write_discriminator(path: Path) -> None:
    """Random weights, as a file that GAS reads."""
    made = R3GANDiscriminator(*DISCRIMINATOR, num_channels=3)
    for parameter in made.init(torch.Generator().manual_seed(0)).parameters():
        if not parameter.any():  # the last layer of a block: no gradient shall vanish
            torch.nn.init.normal_(parameter, std=0.02)
    discriminator.save(path, made, {}, torch.float32)


def fit_of(
    weights: Path,
    memory: Memory,
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


def forward(network: nn.Module, nfe: int, x: Tensor) -> Work:
    """``nfe`` forward passes on a tensor made beforehand, no graph."""
    sigma = torch.ones(())

    @torch.no_grad()
    def work() -> None:
        for _ in range(nfe):
            network(x, sigma)

    return work


def gradients(network: nn.Module, nfe: int, x: Tensor) -> Work:
    """``nfe`` forward passes and as many backward passes to the input, for a given slope."""
    sigma, x = torch.ones(()), x.clone().requires_grad_()
    slope = torch.ones_like(x)

    def work() -> None:
        for _ in range(nfe):
            torch.autograd.grad(network(x, sigma), x, slope)

    return work


def adversary(fit: Fit) -> Work:
    """The discriminator's passes of a GAS step, called bare: its own step, then as a judge."""
    rows = fit.lesson.train.states[: fit.spec.batch]
    made = discriminator.load(Path(str(fit.solver.options["discriminator"])))
    adam, gamma = torch.optim.Adam(made.parameters()), 0.2
    student = rows.clone().requires_grad_()

    def work() -> None:
        made.requires_grad_(True)
        discriminator_gradient(made, (rows, student.detach()), gamma)
        adam.step()
        made.requires_grad_(False)
        with torch.no_grad():
            made(rows)
        torch.autograd.grad(made(student).sum(), student)

    return work


def together(*parts: Work) -> Work:
    """One after the other."""

    def work() -> None:
        for part in parts:
            part()

    return work


def gs_bound(fit: Fit, memory: Memory) -> Work:
    """What a GS step cannot do without, bare."""
    network, nfe = fit.lesson.backbone.network, fit.solver.setting.nfe
    x = fit.lesson.train.noise[: fit.spec.batch]
    learned = gradients(network, nfe, x)
    return learned if memory == "store" else together(forward(network, nfe, x), learned)


def gas_bound(fit: Fit, memory: Memory) -> Work:
    """What a GAS step cannot do without, bare: student, fresh fakes, discriminator.

    With ``recompute`` the fakes go beside the student: passes of twice the batch.
    """
    network, nfe = fit.lesson.backbone.network, fit.solver.setting.nfe
    x = fit.lesson.train.noise[: fit.spec.batch]
    fakes = forward(network, nfe, x if memory == "store" else torch.cat([x, x]))
    return together(fakes, adversary(fit), gradients(network, nfe, x))
