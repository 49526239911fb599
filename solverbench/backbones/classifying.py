"""The recipe that makes the embedded feature extractors and their reference statistics."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from solverbench import tensorfile
from solverbench.backbones.datasets import Images
from solverbench.backbones.extractor import (
    FORMAT,
    Classifier,
    Shape,
    digest_of,
    features_of,
    metric_network,
    pack,
    scaled,
)
from solverbench.errors import unknown_name
from solverbench.images import moments

Report = Callable[[int, float], None]  # images seen, mean loss of the last epoch
NUM_ROWS = 2000  # embeddings kept for neighbour metrics


@dataclass(frozen=True)
class Classifying:
    """Everything that decides the weights, beside the images and the machine.

    Attributes:
        metric: network whose features the metrics read.
        perceptual: network of the training distance.
        epochs: passes over the images, for each network.
        shift: largest random shift, pixels.
        flip: whether images are mirrored at random.
        norm: train with batch norm, folded into the convolutions at the end.
        batch: images a step.
        lr: largest AdamW learning rate; rises over the first fifth, then falls by a cosine to 0.
        decay: weight decay.
        dropout: of the embedding while training.
        seed: of the metric network; the perceptual one has the next.
    """

    metric: Shape
    perceptual: Shape
    epochs: int
    shift: int
    flip: bool
    norm: bool
    batch: int = 128
    lr: float = 4e-3
    decay: float = 0.05
    dropout: float = 0.1
    seed: int = 0

    def rate(self, progress: float) -> float:
        """Learning rate after a share of training."""
        fall = 0.5 * (1 + math.cos(math.pi * max(0.0, progress - 0.2) / 0.8))
        return self.lr * min(progress / 0.2, 1.0) * fall


RECIPES = {
    "digits": Classifying(
        metric=Shape(num_channels=1, widths=(24, 48), depths=(2, 2), pool=1),
        perceptual=Shape(num_channels=1, widths=(16, 32), depths=(2, 2), pool=1),
        epochs=60,
        shift=0,
        flip=False,
        norm=True,
    ),
    "cifar16": Classifying(
        metric=Shape(num_channels=3, widths=(32, 64, 128), depths=(1, 1, 1), pool=4),
        perceptual=Shape(num_channels=3, widths=(24, 48, 96), depths=(1, 1, 1), pool=4),
        epochs=4,
        shift=0,
        flip=False,
        norm=False,
        lr=1e-3,
        decay=0.01,
        dropout=0.0,
    ),
}


def recipe_of(name: str) -> Classifying:
    """The recipe of an extractor.

    Raises:
        SolverBenchError: where there is none of that name.
    """
    if name not in RECIPES:
        raise unknown_name("extractor recipe", name, RECIPES, ", ".join(RECIPES))
    return RECIPES[name]


def train_extractor(
    name: str, images: Images, report: Report
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train both networks of an extractor; held-out images are left out of training.

    Args:
        name: of the recipe.
        images: what to classify.
        report: called after each epoch of either network.

    Returns:
        Tensors (float16) and facts of the weight file; ``write`` stores them.
    """
    recipe = recipe_of(name)
    keep = not_among(images.pixels, images.held_out[0])
    pixels, labels = images.pixels[keep], images.labels[keep]
    tensors: dict[str, Tensor] = {}
    accuracy: dict[str, float] = {}
    networks = {"metric": recipe.metric, "perceptual": recipe.perceptual}
    for offset, (role, shape) in enumerate(networks.items()):
        network = trained(recipe, shape, recipe.seed + offset, (pixels, labels), report)
        accuracy[role] = accuracy_of(network, *images.held_out)
        for key, value in network.state_dict().items():
            if role == "metric" or key.startswith("trunk."):
                tensors[f"{role}.{key}"] = value.half()
    facts = {
        "name": name,
        "side": images.pixels.shape[-1],
        "networks": networks,
        "recipe": asdict(recipe),
        "num_images": len(labels),
        "accuracy": accuracy,
        "num_held_out": len(images.held_out[1]),
        "source": images.source,
        "images_sha256": images.sha256,
    }
    return tensors, facts


def trained(
    recipe: Classifying,
    shape: Shape,
    seed: int,
    data: tuple[Tensor, Tensor],
    report: Report,
) -> Classifier:
    """One trained classifier, batch norm folded in, weights rounded to float16."""
    pixels, labels = data
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(shape, int(labels.max()) + 1, recipe.norm).train()
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=recipe.decay)
        num_steps = len(labels) // recipe.batch
        for epoch in range(recipe.epochs):
            total = 0.0
            order = torch.randperm(len(labels), generator=rng)
            for step, rows in enumerate(torch.split(order, recipe.batch)[:num_steps]):
                progress = (epoch + step / num_steps) / recipe.epochs
                optimiser.param_groups[0]["lr"] = recipe.rate(progress)
                x = augmented(scaled(pixels[rows]), recipe, rng)
                embedding = network.embedding(network.trunk(x))
                scores = network.head(functional.dropout(embedding, recipe.dropout))
                loss = functional.cross_entropy(scores, labels[rows])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                total += float(loss.detach())
            report((epoch + 1) * num_steps * recipe.batch, total / num_steps)
    return folded(network).half().float()


def augmented(x: Tensor, recipe: Classifying, rng: torch.Generator) -> Tensor:
    """Mirror each image at random and shift the batch by up to ``shift`` pixels, edges repeated."""
    if recipe.flip:
        mirror = torch.rand(len(x), generator=rng) < 0.5
        x = torch.where(mirror[:, None, None, None], x.flip(3), x)
    if recipe.shift:
        height, width = x.shape[2:]
        x = functional.pad(x, [recipe.shift] * 4, mode="replicate")
        top, left = torch.randint(2 * recipe.shift + 1, (2,), generator=rng).tolist()
        x = x[:, :, top : top + height, left : left + width]
    return x


def folded(network: Classifier) -> Classifier:
    """Put each batch norm into the convolution before it, in place; frozen from then on."""
    network.eval().requires_grad_(False)
    for stage in network.trunk.stages:
        assert isinstance(stage, nn.Sequential)
        for i, layer in enumerate(stage):
            if isinstance(layer, nn.BatchNorm2d):
                conv = stage[i - 1]
                assert isinstance(conv, nn.Conv2d)
                stage[i - 1], stage[i] = fuse_conv_bn_eval(conv, layer), nn.Identity()
    return network


@torch.no_grad()
def accuracy_of(network: Classifier, pixels: Tensor, labels: Tensor) -> float:
    """Share of images (B, C, H, W), uint8, whose largest score is their label's."""
    guesses = torch.cat(
        [network(scaled(block)).argmax(dim=1) for block in torch.split(pixels, 1000)]
    )
    return float((guesses == labels).double().mean())


def not_among(pixels: Tensor, others: Tensor) -> Tensor:
    """Mask (M,) of the images (M, C, H, W) that do not occur among the others."""
    known = {image.tobytes() for image in others.numpy()}
    return torch.tensor([image.tobytes() not in known for image in pixels.numpy()])


def make_reference(
    images: Images, tensors: dict[str, Tensor], facts: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Statistics of all training images under an extractor.

    Means and the embedding's covariance are float64, the texture's covariance is float32 (its
    rounding, 1e-7 of the largest variance, is far below sampling noise), rows are float16.

    Args:
        images: all of ``images.pixels`` count, held-out ones among them too.
        tensors: of the weight file, from ``train_extractor``.
        facts: of the same file.

    Returns:
        Tensors and facts of the reference file; ``write`` stores them.
    """
    network = metric_network(tensors, facts)
    rows = features_of(network, images.pixels)
    embedding, texture = moments(rows["embedding"]), moments(rows["texture"])
    order = torch.randperm(embedding.num, generator=torch.Generator().manual_seed(0))
    statistics = {
        "embedding.mu": embedding.mu,
        "embedding.sigma": pack(embedding.sigma),
        "texture.mu": texture.mu,
        "texture.sigma": pack(texture.sigma).float(),
        "rows": rows["embedding"][order[:NUM_ROWS]].half(),
    }
    own = {
        "name": facts["name"],
        "num_images": embedding.num,
        "extractor": digest_of(network),
        "source": images.source,
        "images_sha256": images.sha256,
    }
    return statistics, own


def write(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Store a weight or reference file."""
    tensorfile.write(path, FORMAT, tensors, facts)
