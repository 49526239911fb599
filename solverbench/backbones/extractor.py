"""The embedded feature extractors: small classifiers of the images the embedded backbones model."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from solverbench import tensorfile
from solverbench.errors import SolverBenchError
from solverbench.images import Extractor, Features, Moments, Reference, Traits

WEIGHTS = Path(__file__).with_name("weights")
FORMAT = "solverbench-extractor-1"  # of both weight files
NUM_EMBEDDING = 64
BLOCK = 256  # images through the network at once; fixed, since rounding depends on it


class Shape(TypedDict):
    """A classifier: arguments of ``Trunk``, and the places its embedding tells apart.

    ``pool`` is the side of the grid that the last activations are averaged to: with 1 the embedding
    is blind to layout, with more it also sees where something is, and how strong its contrast.
    """

    num_channels: int
    widths: Sequence[int]
    depths: Sequence[int]
    pool: int


class Trunk(nn.Module):
    """Stages of 3 x 3 convolutions with ReLU, each at half the side of the one before.

    Args:
        num_channels: image channels.
        widths: channels of each stage.
        depths: convolutions of each stage.
        norm: with batch norm, as in training; without it, as shipped (folded into the weights).
    """

    def __init__(
        self, num_channels: int, widths: Sequence[int], depths: Sequence[int], norm: bool = False
    ) -> None:
        super().__init__()
        self.stages, now = nn.ModuleList(), num_channels
        for width, depth in zip(widths, depths, strict=True):
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers.append(nn.Conv2d(now, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width) if norm else nn.Identity(), nn.ReLU()]
                now = width
            self.stages.append(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images (B, C, H, W) in [-1, 1] to the activations of each stage."""
        outputs: list[Tensor] = []
        for stage in self.stages:
            x = stage(functional.max_pool2d(x, 2) if outputs else x)
            outputs.append(x)
        return outputs


def trunk_of(shape: Shape, norm: bool = False) -> Trunk:
    """The untrained trunk of a classifier."""
    return Trunk(shape["num_channels"], shape["widths"], shape["depths"], norm)


class Classifier(nn.Module):
    """Trunk, averages over a grid of places, an embedding and class scores."""

    def __init__(self, shape: Shape, num_classes: int = 10, norm: bool = False) -> None:
        super().__init__()
        self.trunk, self.pool = trunk_of(shape, norm), shape["pool"]
        self.embed = nn.Linear(shape["widths"][-1] * self.pool**2, NUM_EMBEDDING)
        self.head = nn.Linear(NUM_EMBEDDING, num_classes)

    def embedding(self, stages: Sequence[Tensor]) -> Tensor:
        """Map the activations of the trunk to (B, 64), not negative."""
        places = functional.adaptive_avg_pool2d(stages[-1], self.pool)
        return functional.relu(self.embed(places.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [-1, 1] to class scores (B, num_classes)."""
        scores: Tensor = self.head(self.embedding(self.trunk(x)))
        return scores


def texture(stages: Sequence[Tensor]) -> Tensor:
    """Mean and standard deviation over pixels of each channel of the first two stages.

    Args:
        stages: activations (B, C_i, H_i, W_i).

    Returns:
        (B, 2 C_0 + 2 C_1).
    """
    flat = [stage.flatten(2) for stage in stages[:2]]
    return torch.cat([f(x) for x in flat for f in (_mean, _std)], dim=1)


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=2)


def _std(x: Tensor) -> Tensor:
    return x.std(dim=2, correction=0)


class EmbeddedExtractor(Extractor):
    """A classifier from a weight file beside this module; runs on the host in float32.

    The file holds two networks: one whose features the metrics read, and a smaller one with other
    widths and another seed for training distances, so that no solver is trained on the features
    that it is measured by.

    Args:
        name: of the images, ``digits`` or ``cifar16``.
        folder: with ``<name>-extractor.safetensors`` and ``<name>-reference.safetensors``.
    """

    def __init__(self, name: str, folder: Path = WEIGHTS) -> None:
        self.name = name
        self._paths = [folder / f"{name}-{part}.safetensors" for part in ("extractor", "reference")]

    def available(self) -> tuple[bool, str]:
        """Whether both files are there."""
        for path in self._paths:
            if not path.is_file():
                return False, f"{path} is missing; reinstall solverbench or train it anew."
        return True, ""

    @cached_property
    def sha256(self) -> str:
        """Hash of the weight file."""
        return sha256_of(self._paths[0])

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Recipe, accuracy and data source of the weights."""
        return tensorfile.read(self._paths[0], FORMAT)[1]

    @property
    def traits(self) -> Traits:
        """Images are read as they are."""
        channels = self.facts["networks"]["metric"]["num_channels"]
        return Traits(NUM_EMBEDDING, channels, batch=BLOCK, licence="Apache-2.0")

    @cached_property
    def network(self) -> Classifier:
        """The metric network, frozen."""
        tensors, facts = tensorfile.read(self._paths[0], FORMAT)
        return metric_network(tensors, facts)

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        """Features of (B, C, H, W) uint8 images: ``embedding`` (B, 64) and ``texture`` (B, T)."""
        side, channels = self.facts["side"], self.facts["networks"]["metric"]["num_channels"]
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != (channels, side, side):
            raise ValueError(
                f"extractor {self.name} reads uint8 images of shape (B, {channels}, {side}, {side})"
                f"; got {pixels.dtype} {tuple(pixels.shape)}."
            )
        return features_of(self.network, pixels)

    def reference(self) -> Reference:
        """Moments over all training images, and the embeddings of at most 2,000 of them.

        The rows are rounded to float16 and carry no texture.
        """
        path = self._paths[1]
        tensors, facts = tensorfile.read(path, FORMAT)
        if facts["extractor"] != digest_of(self.network):
            raise SolverBenchError(
                f"{path} belongs to other weights than {self._paths[0].name}; reinstall solverbench"
                " or train both anew."
            )
        rows = tensors["rows"].float()
        num = facts["num_images"]
        return Reference(
            embedding=Moments(tensors["embedding.mu"], unpack(tensors["embedding.sigma"]), num),
            texture=Moments(tensors["texture.mu"], unpack(tensors["texture.sigma"]), num),
            features=Features(embedding=rows, texture=rows.new_empty(len(rows), 0)),
            sha256=sha256_of(path),
            about=facts["source"],
        )

    def perceptual(self) -> Trunk:
        """The network for training distances, frozen; a fresh copy that may change device."""
        tensors, facts = tensorfile.read(self._paths[0], FORMAT)
        trunk = trunk_of(facts["networks"]["perceptual"])
        trunk.load_state_dict(part(tensors, "perceptual.trunk."))
        return trunk.eval().requires_grad_(False)


class DigitsExtractor(EmbeddedExtractor):
    """For 8 x 8 grey digits."""

    def __init__(self) -> None:
        super().__init__("digits")


class Cifar16Extractor(EmbeddedExtractor):
    """For CIFAR-10 at 16 x 16."""

    def __init__(self) -> None:
        super().__init__("cifar16")


def metric_network(tensors: dict[str, Tensor], facts: dict[str, Any]) -> Classifier:
    """The frozen metric network of a weight file's contents."""
    network = Classifier(facts["networks"]["metric"])
    network.load_state_dict(part(tensors, "metric."))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def features_of(network: Classifier, pixels: Tensor) -> dict[str, Tensor]:
    """Embedding (B, 64) and texture (B, T) of uint8 images (B, C, H, W), in fixed blocks."""
    rows: dict[str, list[Tensor]] = {"embedding": [], "texture": []}
    for block in torch.split(pixels.cpu(), BLOCK):
        stages = network.trunk(scaled(block))
        rows["embedding"].append(network.embedding(stages))
        rows["texture"].append(texture(stages))
    return {key: torch.cat(parts) for key, parts in rows.items()}


def scaled(pixels: Tensor) -> Tensor:
    """Map 0 .. 255 to [-1, 1], float32."""
    return pixels.float() / 127.5 - 1


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose name begins with ``prefix``, without it, as float32."""
    return {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}


def pack(sigma: Tensor) -> Tensor:
    """Upper triangle (D (D + 1) / 2,) of a symmetric matrix (D, D)."""
    rows, columns = torch.triu_indices(len(sigma), len(sigma))
    return sigma[rows, columns].contiguous()


def unpack(triangle: Tensor) -> Tensor:
    """The symmetric float64 matrix (D, D) of an upper triangle."""
    size = int(((8 * len(triangle) + 1) ** 0.5 - 1) / 2)
    rows, columns = torch.triu_indices(size, size)
    sigma = torch.zeros(size, size, dtype=torch.float64)
    sigma[rows, columns] = sigma[columns, rows] = triangle.double()
    return sigma


def digest_of(network: Classifier) -> str:
    """SHA-256 of all weights of a network, in order."""
    state = network.state_dict().values()
    return hashlib.sha256(b"".join(v.contiguous().numpy().tobytes() for v in state)).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
