"""The network is the only cost of sampling that may be seen."""

import pytest
import torch

from benchmarks.reference import forward
from solverbench.backbones.edm import EDM
from solverbench.backbones.embedded import Cifar16, Digits
from solverbench.solvers.base import Setting
from solverbench.solvers.dpmpp import DPMpp3M
from solverbench.solvers.tableau import sample

pytestmark = pytest.mark.timeout(1200)  # on a machine that does other work

BATCH, NFE = 64, 5
LIMIT = 1.05  # of small networks; the rest over 1.02 is room for a shared machine
REFERENCE_LIMIT = 1.02
ROUNDS = {"digits": 150, "cifar16": 20}  # short rounds scatter more
REFERENCE_ROUNDS = {4: 15, 8: 9}
QUICK_BATCH, QUICK_NFE, QUICK_ROUNDS = 4, 4, 15


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


def over_bare(side_by_side, reference, nfe: int, batch: int, rounds: int) -> float:
    """Base: the reference network alone, ``nfe`` times."""
    backbone = EDM(weights=str(reference))
    noise = backbone.noise(range(batch))
    tableau = DPMpp3M(Setting(backbone.schedule, nfe, backbone.output)).tableau()
    bare = forward(backbone.network, nfe, noise)
    return side_by_side(lambda: sample(backbone, tableau, noise), bare, rounds)


@pytest.mark.parametrize("nfe", REFERENCE_ROUNDS)
def test_sampling_with_the_reference_network_costs_its_passes(side_by_side, reference, nfe) -> None:
    ratio = over_bare(side_by_side, reference, nfe, BATCH, REFERENCE_ROUNDS[nfe])
    assert ratio <= REFERENCE_LIMIT


@pytest.mark.quick
def test_quick_sampling(side_by_side, reference) -> None:
    """Compared with the baseline by ``regress.py``."""
    over_bare(side_by_side, reference, QUICK_NFE, QUICK_BATCH, QUICK_ROUNDS)
