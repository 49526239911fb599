"""Making an embedded backbone anew: the recipe, then its quality and its model card."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from solverbench.backbones.extractor import EmbeddedExtractor
from solverbench.backbones.recipes import images_for, train_backbone
from solverbench.baselines.recipe import load_recipe
from solverbench.benchmark.adversary import make_discriminator
from solverbench.benchmark.features import features_of
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.metrics.frechet import FD
from solverbench.benchmark.spec import Named
from solverbench.commands import images_of
from solverbench.files import write_text
from solverbench.pictures import tile, write_png

NUM_IMAGES = 2000  # for the FD on the card


def make_backbone(
    name: str, data: Path | None, out: Path, num_images: int | None, threads: int, quiet: bool
) -> dict[str, Any]:
    """Train an embedded backbone, measure its teacher and write its card.

    Args:
        name: ``digits`` or ``cifar16``.
        data: images, where the recipe needs them.
        out: folder for checkpoint, weights, card and sample grid.
        num_images: length of the denoiser's training, if not the recipe's.
        threads: of the CPU.
        quiet: no progress.

    Returns:
        Facts of the card.

    Raises:
        SolverBenchError: for an unknown name or missing images.
    """
    images = images_for(name, data)
    torch.set_num_threads(threads)
    console = Console(stderr=True, quiet=quiet)
    words = TextColumn("{task.description:<32}")
    columns = (words, BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, Any] = {}

        def report(what: str, done: int, total: int, loss: float) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            text = f"{what}, loss {loss:.4f}"
            progress.update(bars[what], completed=done, total=total, description=text)
            if not console.is_terminal:
                console.print(f"{what}: {done:,} of {total:,} images, loss {loss:.4f}")

        facts = train_backbone(name, images, out, num_images, report)
    facts |= quality(name, out) | {"threads": threads}
    write_text(out / f"{name}.md", card(name, facts))
    return facts


def make_adversary(name: str, out: Path, threads: int, quiet: bool) -> dict[str, Any]:
    """Train the discriminator of an embedded backbone.

    Args:
        name: ``digits`` or ``cifar16``.
        out: folder for the weights.
        threads: of the CPU.
        quiet: no progress.

    Returns:
        Facts, as in the file.

    Raises:
        SolverBenchError: for a backbone without a recipe.
    """
    torch.set_num_threads(threads)
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, quiet=quiet)) as progress:
        bars: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done)

        return make_discriminator(name, out, report)


def quality(name: str, folder: Path) -> dict[str, Any]:
    """FD of the teacher's samples under the new extractor, and a grid of them.

    Args:
        name: ``digits``, one of its halves, or ``cifar16``.
        folder: with the new weights; the grid goes there too.
    """
    recipe = load_recipe(name.partition("-")[0])  # a half is measured as its whole is
    named = Named(name=name, options={"weights": str(folder / f"{name}.safetensors")})
    backbone = load_backbone(name, **named.options)
    solver = recipe.teacher.solver
    teacher = load_solver(solver.name, backbone, recipe.teacher.nfe, **solver.options)
    first = recipe.evaluation.first_seed
    images = images_of(named, teacher.tableau(), range(first, first + NUM_IMAGES))
    extractor = EmbeddedExtractor(name, folder)
    generated = features_of(extractor, images, backbone.quantisation)
    fd = FD().compute(generated=generated, reference=extractor.reference())
    write_png(folder / f"{name}.png", tile(images[:100], 10, max(1, 48 // images.shape[-1])))
    return {"teacher_fd": fd, "teacher": f"{teacher.title}, {recipe.teacher.nfe} NFE"}


def card(name: str, facts: dict[str, Any]) -> str:
    """The model card, as markdown."""
    recipe, extractor = facts["recipe"], facts["extractor"]
    lines = "\n".join(f"| {key} | {value} |" for key, value in recipe.items())
    return f"""# {name}

A small denoiser in EDM preconditioning with its feature extractor, made by
`solverbench backbone train {name}` for benchmarking solvers. Not for making pictures.

| fact | value |
| --- | --- |
| data | {facts["data"]} |
| SHA-256 of the pixels | {facts["data_sha256"]} |
| parameters | {facts["num_parameters"]:,} |
| images seen | {facts["images"]:,} |
| loss, mean of the last minute | {facts["loss"]} |
| wall clock | {facts["core_seconds"] / 3600:.2f} hours, {facts["threads"]} thread(s) |
| FD[{name}] of the teacher | {facts["teacher_fd"]:.2f} |
| teacher | {facts["teacher"]}; {NUM_IMAGES:,} samples, seeds from 50,000 |
| accuracy of the extractor, held-out images | {_accuracies(extractor)} |

FD is the Frechet distance on the embedded extractor's 64 features, to the statistics of the
training images. It is not FID and cannot be compared with one.

## Recipe

| option | value |
| --- | --- |
{lines}

![samples of the teacher, seeds from 50,000]({name}.png)
"""


def _accuracies(extractor: dict[str, Any]) -> str:
    return ", ".join(f"{part} {value:.1%}" for part, value in extractor["accuracy"].items())
