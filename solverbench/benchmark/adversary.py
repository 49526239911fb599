"""Pretrained discriminators of the embedded backbones, and the recipe that makes them."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverbench import registry
from solverbench.backbones.base import Backbone
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.run import extractor_of
from solverbench.benchmark.sampling import Samples, sample_seeds
from solverbench.benchmark.spec import FitSpec
from solverbench.benchmark.training import Fit, Lesson
from solverbench.discriminator import R3GANDiscriminator, discriminator_step, preset, save
from solverbench.errors import SolverBenchError
from solverbench.solvers.base import LearnableSolver
from solverbench.solvers.tableau import Tableau

Report = Callable[[str, int, int], None]  # stage, done, total
TEACHER = {"schedule": "logsnr", "variant": "bh1", "t_min": 1e-4}  # unipc-3, 20 calls
BATCH = 100  # of sampling
HELD_OUT = 0.1  # share of each set that is never trained on
FIRST_REAL, FIRST_FAKE = 20_000, 30_000  # seeds; those of fits start at 0


@dataclass(frozen=True)
class Plan:
    """How a discriminator learns.

    Attributes:
        preset: its sizes.
        steps: of Adam.
        batch: pairs a step.
        lr: learning rate, falling to 0 along a cosine.
        gamma: weight of the gradient penalties.
    """

    preset: str
    steps: int
    batch: int
    lr: float
    gamma: float


@dataclass(frozen=True)
class Recipe:
    """How the shipped discriminator of a backbone is made.

    Attributes:
        plan: of the discriminator.
        fit: budget of GS; validation pairs are its last ones.
        ages: iterations after which GS is sampled.
        learned_nfe: where GS is trained.
        free: solvers without parameters.
        free_nfe: where they are sampled.
        num_real: teacher samples.
        num_learned: samples of each GS.
        num_free: samples of each other solver at each NFE.
    """

    plan: Plan
    fit: FitSpec
    ages: tuple[int, ...] = (150, 300)
    learned_nfe: tuple[int, ...] = (3, 4)
    free: tuple[str, ...] = ("dpmpp-3m", "unipc-3", "ipndm-3")
    free_nfe: tuple[int, ...] = (3, 4, 6)
    num_real: int = 3000
    num_learned: int = 3000
    num_free: int = 750


def _budget(lr: float) -> FitSpec:
    return FitSpec(
        iterations=1,
        batch=16,
        lr=lr,
        lr_schedule="cosine",
        distance="feature",
        train_size=1400,
        validation_size=64,
        validate_every=10_000,
        ema_decay=0.99,
    )


RECIPES = {
    "digits": Recipe(Plan("small-8", 2000, 32, 2e-3, 0.01), _budget(2e-2), ages=(200, 600)),
    "cifar16": Recipe(
        Plan("small-16", 1000, 32, 2e-3, 0.01),
        _budget(1e-2),
        ages=(100, 300),
        num_real=2000,
        num_learned=2000,
        num_free=400,
    ),
}


def make_discriminator(
    name: str, out: Path, report: Report = lambda stage, done, total: None
) -> dict[str, Any]:
    """Make the discriminator of an embedded backbone anew.

    Args:
        name: ``digits`` or ``cifar16``.
        out: folder for ``<name>-discriminator.safetensors``.
        report: told of progress.

    Returns:
        Facts, as in the file.

    Raises:
        SolverBenchError: for a backbone without a recipe.
    """
    if name not in RECIPES:
        raise SolverBenchError(
            f"backbone {name} has no discriminator recipe; those that have: {', '.join(RECIPES)}"
        )
    recipe = RECIPES[name]
    backbone = load_backbone(name)
    with tempfile.TemporaryDirectory() as folder:
        studio = _Studio(backbone, recipe, Path(folder), report)
        real, fakes = studio.real(), studio.fakes()
    rng = torch.Generator().manual_seed(0)
    made, facts = train_discriminator(real, fakes, recipe.plan, rng, report)
    facts |= {"backbone": name, "backbone_sha256": backbone.weights_sha256}
    facts |= {"recipe": asdict(recipe) | {"fit": recipe.fit.model_dump(mode="json")}}
    save(out / f"{name}-discriminator.safetensors", made, facts)
    return facts


def train_discriminator(
    real: Tensor,
    fakes: Mapping[str, Tensor],
    plan: Plan,
    rng: torch.Generator,
    report: Report = lambda stage, done, total: None,
) -> tuple[R3GANDiscriminator, dict[str, Any]]:
    """Teach a discriminator to tell the teacher's samples from those of few-step solvers.

    Args:
        real: the teacher's final states, (M, C, H, W).
        fakes: final states by solver, (M', C, H, W) each; larger sets are met more often.
        plan: how.
        rng: on the CPU; initial weights, then batches.
        report: told of progress.

    Returns:
        The discriminator, and facts: for each solver the share of held-out pairs in which the
        teacher's sample has the higher score (0.5 where nothing can be told apart).
    """
    made = preset(plan.preset, real.shape[1], rng)
    adam = torch.optim.Adam(made.parameters(), lr=plan.lr, betas=(0.9, 0.99))
    seen, kept = _parts(real)
    pool = torch.cat([_parts(fake)[0] for fake in fakes.values()])
    for i in range(plan.steps):
        adam.param_groups[0]["lr"] = plan.lr * 0.5 * (1 + math.cos(math.pi * i / plan.steps))
        rows = torch.randint(len(seen), (plan.batch,), generator=rng)
        others = torch.randint(len(pool), (plan.batch,), generator=rng)
        discriminator_step(made, adam, (seen[rows], pool[others]), plan.gamma)
        report("discriminator", i + 1, plan.steps)
    with torch.no_grad():
        scores = made(kept)
        share = {
            key: round(float((scores[:, None] > made(_parts(fake)[1])).double().mean()), 3)
            for key, fake in fakes.items()
        }
    return made, {"told_apart": share}


def _parts(states: Tensor) -> tuple[Tensor, Tensor]:
    """What is trained on, and what is held out."""
    cut = len(states) - int(HELD_OUT * len(states))
    return states[:cut], states[cut:]


class _Studio:
    """Makes both sides: the teacher's samples and those of solvers with few calls."""

    def __init__(self, backbone: Backbone, recipe: Recipe, folder: Path, report: Report) -> None:
        self.backbone, self.recipe, self.folder, self.report = backbone, recipe, folder, report
        self.teacher = load_solver("unipc-3", backbone, 20, **TEACHER).tableau().detach()
        self.next = FIRST_FAKE
        fit, extractor = recipe.fit, extractor_of(backbone)
        distance = registry.distances.get(fit.distance)(backbone, extractor)
        train = self._sampled("pairs", self.teacher, range(fit.train_size))
        first = range(fit.validation_size)  # what they say is not used
        few = self._sampled("few", self.teacher, first)
        self.lesson = Lesson(fit, 0, backbone, distance, train, few)

    def real(self) -> Tensor:
        """The teacher's final states."""
        seeds = range(FIRST_REAL, FIRST_REAL + self.recipe.num_real)
        return self._sampled("teacher", self.teacher, seeds).states[:]

    def fakes(self) -> dict[str, Tensor]:
        """Final states by solver, NFE and, for GS, iterations of training."""
        recipe, found = self.recipe, dict[str, Tensor]()
        for name in recipe.free:
            for nfe in recipe.free_nfe:
                tableau = load_solver(name, self.backbone, nfe).tableau().detach()
                found[f"{name}@{nfe}"] = self._few(f"{name}@{nfe}", tableau, recipe.num_free)
        for nfe in recipe.learned_nfe:
            for age in recipe.ages:
                key = f"gs@{nfe}-{age}"
                found[key] = self._few(key, self._trained(key, nfe, age), recipe.num_learned)
        return found

    def _trained(self, key: str, nfe: int, iterations: int) -> Tableau:
        solver = load_solver("gs", self.backbone, nfe)
        assert isinstance(solver, LearnableSolver)
        spec = self.recipe.fit.model_copy(update={"iterations": iterations})
        fit = Fit(solver, replace(self.lesson, spec=spec))
        return fit.run(self.folder / f"fit-{key}", self._told(f"train {key}"))

    def _few(self, key: str, tableau: Tableau, num: int) -> Tensor:
        """States of seeds that no other set has."""
        seeds = range(self.next, self.next + num)
        self.next += num
        return self._sampled(key, tableau, seeds).states[:]

    def _sampled(self, key: str, tableau: Tableau, seeds: Sequence[int]) -> Samples:
        told = self._told(key)
        return sample_seeds(self.folder / key, self.backbone, tableau, seeds, BATCH, told)

    def _told(self, key: str) -> Callable[[int, int], None]:
        return lambda done, total: self.report(key, done, total)
