"""The network is the only cost of sampling that may be seen."""

import pytest
import torch

from solverbench.backbones.embedded import Cifar16, Digits
from solverbench.solvers.base import Setting
from solverbench.solvers.dpmpp import DPMpp3M
from solverbench.solvers.tableau import sample

BATCH, NFE = 64, 5
LIMIT = 1.05  # the design asks for 1.02; the rest is room for a shared machine
ROUNDS = {"digits": 150, "cifar16": 20}  # short rounds scatter more


@pytest.mark.parametrize("kind", [Digits, Cifar16], ids=lambda kind: kind.name)
def test_sampling_costs_its_forward_passes_and_little_more(side_by_side, kind) -> None:
    """Base: the network alone on tensors made beforehand, as often as the sampler calls it."""
    backbone = kind()
    seeds = range(BATCH)
    noise, condition = backbone.noise(seeds), backbone.condition(seeds)
    labels = condition.labels if condition else None
    tableau = DPMpp3M(Setting(backbone.schedule, NFE, backbone.output)).tableau()
    sigma = torch.ones(())

    def bare() -> None:
        for _ in range(NFE):
            backbone.network(noise, sigma, labels)

    with torch.no_grad():
        ratio = side_by_side(
            lambda: sample(backbone, tableau, noise, condition), bare, ROUNDS[kind.name]
        )
    assert ratio <= LIMIT
