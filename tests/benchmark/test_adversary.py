"""The recipe of the shipped discriminators."""

from pathlib import Path

import pytest
import torch

from solverbench.benchmark import adversary
from solverbench.benchmark.adversary import (
    FIRST_FAKE,
    FIRST_REAL,
    RECIPES,
    Plan,
    Recipe,
    make_discriminator,
    train_discriminator,
)
from solverbench.benchmark.load import load_backbone
from solverbench.benchmark.spec import FitSpec
from solverbench.discriminator import FORMAT, load
from solverbench.errors import SolverBenchError
from solverbench.tensorfile import read

FIT = FitSpec(iterations=1, batch=4, train_size=8, validation_size=4, distance="feature", lr=1e-2)
TINY = Recipe(
    Plan("small-8", steps=3, batch=4, lr=1e-3, gamma=0.01),
    FIT,
    ages=(2,),
    learned_nfe=(3,),
    free=("dpmpp-3m",),
    free_nfe=(3,),
    num_real=20,
    num_learned=20,
    num_free=20,
)
FIRST_VALIDATION = 49_000


def test_recipe_gives_the_same_file_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(adversary.RECIPES, "digits", TINY)
    stages = set[str]()
    for folder in ("a", "b"):
        facts = make_discriminator("digits", tmp_path / folder, lambda *now: stages.add(now[0]))
    assert set(facts["told_apart"]) == {"dpmpp-3m@3", "gs@3-2"}
    assert {"teacher", "train gs@3-2", "gs@3-2", "discriminator"} <= stages
    one, two = (load(tmp_path / f / "digits-discriminator.safetensors") for f in "ab")
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key])


def test_discriminator_learns_what_differs_and_only_that() -> None:
    """Brighter images are found out; images of the same law are not, up to the noise of 20."""
    rng = torch.Generator().manual_seed(0)
    real, same, brighter = (torch.randn(200, 1, 8, 8, generator=rng) for _ in range(3))
    plan = Plan("small-8", steps=60, batch=16, lr=2e-3, gamma=0.01)
    fakes = {"same": same, "brighter": brighter + 1}
    _, facts = train_discriminator(real, fakes, plan, torch.Generator().manual_seed(1))
    assert facts["told_apart"]["brighter"] > 0.95
    assert 0.25 < facts["told_apart"]["same"] < 0.75


def test_backbone_without_a_recipe_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SolverBenchError, match="those that have: digits, cifar16"):
        make_discriminator("gaussian", tmp_path)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_seeds_of_the_sets_overlap_with_none(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.fit.train_size <= FIRST_REAL
    assert FIRST_REAL + recipe.num_real <= FIRST_FAKE
    num = len(recipe.free) * len(recipe.free_nfe) * recipe.num_free
    num += len(recipe.learned_nfe) * len(recipe.ages) * recipe.num_learned
    assert FIRST_FAKE + num <= FIRST_VALIDATION


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_shipped_discriminator_fits_its_backbone_and_tells_gs_from_the_teacher(name: str) -> None:
    backbone = load_backbone(name)
    assert backbone.discriminator is not None
    found, (_, facts) = load(backbone.discriminator), read(backbone.discriminator, FORMAT)
    channels, height, _ = backbone.state_shape
    assert (found.num_channels, found.resolution) == (channels, height)
    assert facts["backbone_sha256"] == backbone.weights_sha256
    shares = [value for key, value in facts["told_apart"].items() if key.startswith("gs@3")]
    assert min(shares) > 0.52  # 0.5 is chance


def test_shipped_discriminators_are_small() -> None:
    files = [load_backbone(name).discriminator for name in RECIPES]
    assert sum(file.stat().st_size for file in files if file) < 400_000
