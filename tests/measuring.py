"""Small feature sets, and the two commands that measure them."""

from pathlib import Path

import click
import numpy as np
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from solverbench.backbones.extractor import DigitsExtractor
from solverbench.cli_measure import evaluate, reference
from solverbench.cli_parts import Group


@click.group(cls=Group)
def commands() -> None:
    """Both commands, as the program has them."""


commands.add_command(evaluate)
commands.add_command(reference)


def call(*words: object) -> Result:
    return CliRunner().invoke(commands, [str(word) for word in words])


def noise(num: int, seed: int) -> Tensor:
    """Blurred noise: enough for every feature to vary."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(num, 1, 10, 10, generator=rng)
    return (torch.nn.functional.avg_pool2d(images, 3, 1) * 255).to(torch.uint8)


def rows(num: int, seed: int) -> Tensor:
    return DigitsExtractor().extract(noise(num, seed))["embedding"]


def plain(place: Path) -> Path:
    np.savez(place / "plain.npz", features=rows(40, 2).numpy())
    return place / "plain.npz"
