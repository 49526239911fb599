"""What metrics read: 8-bit images, features of them, their moments, and who makes them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import Tensor

BLOCK = 4096  # rows summed at once
INCEPTION_2015 = frozenset(
    {"inception-edm", "inception-v3-compat"}
)  # only theirs may be called FID
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
        num: rows they are made of; 0 where a file does not say.
        extractor: whose features; empty where that is not known.
    """

    mu: Tensor
    sigma: Tensor
    num: int
    extractor: str = ""


@dataclass(eq=False)
class Statistics:
    """What moments are made of, for rows that arrive in parts or in several processes.

    ``Statistics()`` is empty; ``update`` and ``merge`` fill it. Sums are float64 around a fixed
    shift, the mean of the first part: unshifted sums of features far from zero lose digits.

    Attributes:
        shift: (D,), what every row is taken from.
        total: (D,), sum of the shifted rows.
        products: (D, D), sum of their outer products.
        num: rows so far.
    """

    shift: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    total: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    products: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    num: int = 0

    def update(self, rows: Tensor) -> Self:
        """Add rows (B, D), any floating type, B >= 1.

        Raises:
            ValueError: for another shape than before, or NaN or infinity among them.
        """
        rows = check(rows, least=1)
        if self.num and rows.shape[1] != len(self.shift):
            raise ValueError(
                f"features have {rows.shape[1]} dimensions, those before {len(self.shift)}; "
                "use one extractor for all."
            )
        for part in torch.split(rows, BLOCK):
            self._add(part.double())
        return self

    def _add(self, part: Tensor) -> None:
        if not self.num:
            self.shift = part.mean(dim=0)
            self.total = torch.zeros_like(self.shift)
            self.products = self.total.new_zeros(part.shape[1], part.shape[1])
        centred = part - self.shift
        self.total += centred.sum(dim=0)
        self.products += centred.T @ centred
        self.num += len(part)

    def merge(self, other: "Statistics") -> Self:
        """Add what another process has summed; its own shift may differ.

        Raises:
            ValueError: where D differs.
        """
        if not other.num:
            return self
        if not self.num:
            self.shift, self.num = other.shift.clone(), other.num
            self.total, self.products = other.total.clone(), other.products.clone()
            return self
        if len(other.shift) != len(self.shift):
            raise ValueError(
                f"statistics of {len(self.shift)} and {len(other.shift)} dimensions cannot be "
                "merged; use one extractor for all."
            )
        step = other.shift - self.shift
        cross = torch.outer(step, other.total)
        self.products += other.products + cross + cross.T + other.num * torch.outer(step, step)
        self.total += other.total + other.num * step
        self.num += other.num
        return self

    def moments(self, extractor: str = "") -> Moments:
        """Mean and unbiased covariance of all rows so far.

        Raises:
            ValueError: for fewer than two rows.
        """
        if self.num < 2:
            raise ValueError(f"a covariance needs at least two rows; got {self.num}.")
        mean, num = self.total / self.num, self.num
        sigma = (self.products - num * torch.outer(mean, mean)) / (num - 1)
        return Moments(self.shift + mean, sigma, num, extractor)


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


class Traits(NamedTuple):
    """What a record says of an extractor beside its name and weights.

    Attributes:
        dim: of the embedding; 0 where it is not known.
        channels: of its images.
        resize: rule that brings images to the network's size.
        batch: images through the network at once; None: all of a set. Rounding depends on it.
        precision: of weights and arithmetic.
        licence: of the weights.
    """

    dim: int = 0
    channels: int = 3
    resize: str = "none"
    batch: int | None = None
    precision: str = "float32"
    licence: str = ""


class Extractor(ABC):
    """Turns 8-bit images into features; the same bytes always give the same rows.

    Attributes:
        name: goes into labels of metrics, for example ``FD[cifar16]``.
        needs: published files that it reads, as ``solverbench weights list`` shows them.
    """

    name: str
    needs: tuple[str, ...] = ()

    @property
    def traits(self) -> Traits:
        """What it says of itself."""
        return Traits()

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


def moments(rows: Tensor, block: int = BLOCK) -> Moments:
    """Mean and unbiased covariance, summed in float64 around the first block's mean.

    Args:
        rows: (M, D), any floating type.
        block: rows summed at once.

    Returns:
        The moments, on the host.

    Raises:
        ValueError: for fewer than two rows, or NaN or infinity among them.
    """
    statistics = Statistics()
    for part in torch.split(check(rows), block):
        statistics.update(part)
    return statistics.moments()


def check(rows: Tensor, least: int = 2) -> Tensor:
    """Rows (M, D) on the host, without graph, once they are known to be usable.

    Raises:
        ValueError: for another shape, fewer than ``least`` rows, or NaN or infinity among them.
    """
    if rows.ndim != 2 or len(rows) < least:
        raise ValueError(f"features must be (M, D) with M >= {least}; got {tuple(rows.shape)}.")
    if not rows.isfinite().all():
        bad = int((~rows.isfinite().all(dim=1)).sum())
        raise ValueError(f"{bad} of {len(rows)} feature rows hold NaN or infinity.")
    return rows.detach().cpu()
