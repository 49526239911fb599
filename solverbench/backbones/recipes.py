"""The recipes of the embedded backbones, and the command that runs one from images to weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from solverbench import tensorfile
from solverbench.backbones import classifying, datasets
from solverbench.backbones.extractor import FORMAT, WEIGHTS
from solverbench.backbones.pretraining import Pretraining, Trainer
from solverbench.errors import unknown_name

Report = Callable[[str, int, int, float], None]  # what, done, total, loss

DENOISERS = {
    "digits": Pretraining(
        network={
            "resolution": 8,
            "num_channels": 1,
            "width": 24,
            "mult": [1, 2],
            "num_blocks": 1,
            "attention": [4],
        },
        num_images=800_000,
        lr=3e-3,
        warmup_images=20_000,
        bfloat16=False,
    ),
    "cifar16": Pretraining(
        network={
            "resolution": 16,
            "num_channels": 3,
            "width": 32,
            "mult": [1, 2, 4],
            "num_blocks": 1,
            "attention": [8, 4],
            "num_classes": 10,
        },
        num_images=2_100_000,
    ),
}
HALVES = {"digits-low": range(5), "digits-high": range(5, 10)}  # classes of digits
DENOISERS |= dict.fromkeys(HALVES, DENOISERS["digits"])
IMAGES: dict[str, Callable[[Path | None], datasets.Images]] = {
    "digits": datasets.digits,
    "cifar16": datasets.cifar16,
}


def images_for(name: str, data: Path | None) -> datasets.Images:
    """The images of a recipe.

    Args:
        name: one of ``DENOISERS``.
        data: a tar or folder, where the recipe needs one.

    Raises:
        SolverBenchError: for an unknown name or missing images.
    """
    if name not in DENOISERS:
        raise unknown_name("embedded backbone", name, DENOISERS, ", ".join(DENOISERS))
    if name in HALVES:
        return _half(datasets.digits(data), HALVES[name])
    return IMAGES[name](data)


def _half(images: datasets.Images, classes: range) -> datasets.Images:
    """The images of some classes that follow each other."""

    def kept(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        own = (labels >= classes.start) & (labels < classes.stop)
        return pixels[own], labels[own]

    pixels, labels = kept(images.pixels, images.labels)
    source = f"{images.source}, of which the {len(labels)} digits {classes[0]} to {classes[-1]}"
    return datasets.Images(pixels, labels, kept(*images.held_out), source, datasets.digest(pixels))


def _extractor(
    name: str, images: datasets.Images, report: Report
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A trained extractor; halves of digits have the shipped one of digits, which knows both."""
    if name in HALVES:
        return tensorfile.read(WEIGHTS / "digits-extractor.safetensors", FORMAT)
    return classifying.train_extractor(
        name, images, lambda seen, loss: report("extractor", seen, seen, loss)
    )


def train_backbone(
    name: str, images: datasets.Images, out: Path, num_images: int | None, report: Report
) -> dict[str, Any]:
    """Train denoiser, extractor and reference of an embedded backbone.

    Args:
        name: one of ``DENOISERS``.
        images: from ``images_for``.
        out: folder for checkpoint and results; a checkpoint found there is continued.
        num_images: length of the denoiser's training, if not the recipe's.
        report: told of progress.

    Returns:
        Facts for the model card: recipe, data, loss, seconds.

    Raises:
        SolverBenchError: where a checkpoint in ``out`` is of another recipe.
    """
    recipe = DENOISERS[name]
    if num_images is not None:
        recipe = replace(recipe, num_images=num_images)
    trainer = Trainer(recipe, images.pixels, images.labels)
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        trainer.load(checkpoint)
    losses = [float("nan")]

    def trained(seen: int, loss: float) -> None:
        losses.append(loss)
        report("denoiser", seen, recipe.num_images, loss)

    trainer.run(checkpoint, trained)
    facts = {"data": images.source, "data_sha256": images.sha256, "loss": round(losses[-1], 4)}
    facts = trainer.export(out / f"{name}.safetensors", facts)
    tensors, extractor = _extractor(name, images, report)
    classifying.write(out / f"{name}-extractor.safetensors", tensors, extractor)
    statistics, reference = classifying.make_reference(images, tensors, extractor)
    classifying.write(out / f"{name}-reference.safetensors", statistics, reference)
    return facts | {"extractor": extractor}
