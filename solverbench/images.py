"""What metrics read: 8-bit images, features of them, their moments, and who makes them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Stages = Callable[[Tensor], list[Tensor]]  # images (B, C, H, W) in [-1, 1] -> activations by stage


def quantise_edm(images: Tensor) -> Tensor:
    """Round images in [-1, 1] to 8 bits: trunc(clip(127.5 x + 128, 0, 255)).

    Args:
        images: (B, C, H, W), floating point.

    Returns:
        Same shape, uint8; half of all values are one level above ``quantise_adm``.

    Source: image writing of EDM (Karras et al., 2022).
    """
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def quantise_adm(images: Tensor) -> Tensor:
    """Floor images in [-1, 1] to 8 bits: trunc(clamp(127.5 (x + 1), 0, 255)).

    Args:
        images: (B, C, H, W), floating point.

    Returns:
        Same shape, uint8.

    Source: image writing of ADM (Dhariwal and Nichol, 2021) and latent diffusion.
    """
    return ((images.float() + 1) * 127.5).clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of feature rows.

    Attributes:
        mu: (D,), float64.
        sigma: (D, D), float64, unbiased.
        num: rows they are made of.
    """

    mu: Tensor
    sigma: Tensor
    num: int


@dataclass(frozen=True, eq=False)
class Features:
    """What an extractor says of M images, in their order.

    Attributes:
        embedding: (M, D), float32: what the images show.
        texture: (M, T), float32: statistics of early activations; T is 0 where they are not kept.
        images: (M, C, H, W), decoded images in [-1, 1], not quantised; for paired metrics only.
    """

    embedding: Tensor
    texture: Tensor
    images: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Reference:
    """What generated images are compared with.

    Attributes:
        embedding: moments of all embeddings.
        texture: moments of all textures.
        features: rows for neighbour and paired metrics, possibly fewer than the moments hold.
        sha256: of the file or the rows it comes from.
        about: one line: which images.
    """

    embedding: Moments
    texture: Moments
    features: Features | None
    sha256: str
    about: str


class Extractor(ABC):
    """Turns 8-bit images into features; the same bytes always give the same rows.

    Attributes:
        name: goes into labels of metrics, for example ``FD[cifar16]``.
    """

    name: str

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Hash of the weights."""

    @abstractmethod
    def available(self) -> tuple[bool, str]:
        """Whether it can run here, and if not, what to do (one line)."""

    @abstractmethod
    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        """Features of (B, C, H, W) uint8 images.

        Returns:
            ``embedding`` (B, D) and ``texture`` (B, T), float32, on the host.

        Raises:
            ValueError: where the images have another type or shape than the extractor was made for.
        """

    @abstractmethod
    def reference(self) -> Reference:
        """Statistics of the data set that the extractor was made for."""

    def perceptual(self) -> Stages | None:
        """A network for training distances, not the one behind ``extract``; None: there is none."""
        return None


def moments(rows: Tensor, block: int = 4096) -> Moments:
    """Mean and unbiased covariance, summed in float64 around the first block's mean.

    Args:
        rows: (M, D), any floating type.
        block: rows summed at once.

    Returns:
        The moments, on the host.

    Raises:
        ValueError: for fewer than two rows, or NaN or infinity among them.
    """
    rows = check(rows)
    shift = rows[:block].double().mean(dim=0)
    total = torch.zeros_like(shift)
    products = torch.zeros(len(shift), len(shift), dtype=torch.float64)
    for part in torch.split(rows, block):
        centred = part.double() - shift
        total += centred.sum(dim=0)
        products += centred.T @ centred
    num = len(rows)
    mean = total / num
    return Moments(shift + mean, (products - num * torch.outer(mean, mean)) / (num - 1), num)


def check(rows: Tensor) -> Tensor:
    """Rows (M, D) on the host, without graph, once they are known to be usable.

    Raises:
        ValueError: for another shape, fewer than two rows, or NaN or infinity among them.
    """
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"features must be (M, D) with M >= 2; got {tuple(rows.shape)}.")
    if not rows.isfinite().all():
        bad = int((~rows.isfinite().all(dim=1)).sum())
        raise ValueError(f"{bad} of {len(rows)} feature rows hold NaN or infinity.")
    return rows.detach().cpu()
