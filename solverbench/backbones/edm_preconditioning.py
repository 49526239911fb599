"""The four preconditioners of EDM: from a network to a denoiser of x0 + sigma n.

Source: Karras et al. (2022), table 1.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from solverbench.backbones.edm_networks import (
    DhariwalKeywords,
    DhariwalUNet,
    SongKeywords,
    SongUNet,
)
from solverbench.errors import SolverBenchError


class Scalings(NamedTuple):
    """Factors at given noise levels, (B or 1, 1, 1, 1) each.

    Attributes:
        skip: of the state.
        out: of the network's output.
        inner: of the network's input.
        noise: what the network is told about the noise.
    """

    skip: Tensor
    out: Tensor
    inner: Tensor
    noise: Tensor


class Keywords(BaseModel):
    """Constructor keywords of every preconditioner."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    img_resolution: int = Field(ge=4, le=1024)
    img_channels: int = Field(ge=1, le=64)
    label_dim: int = Field(0, ge=0, le=100_000)
    use_fp16: bool = False
    model_type: str = ""


class RangeKeywords(Keywords):
    """Those with a range of noise levels."""

    sigma_min: float = Field(0.0, ge=0)
    sigma_max: float = Field(math.inf, gt=0)


class EDMKeywords(RangeKeywords):
    """Those of ``EDMPrecond``."""

    sigma_data: float = Field(0.5, gt=0, allow_inf_nan=False)


class VEKeywords(RangeKeywords):
    """Those of ``VEPrecond``."""

    sigma_min: float = Field(0.02, ge=0)
    sigma_max: float = Field(100.0, gt=0)


class VPKeywords(Keywords):
    """Those of ``VPPrecond``."""

    beta_d: float = Field(19.9, gt=0, allow_inf_nan=False)
    beta_min: float = Field(0.1, gt=0, allow_inf_nan=False)
    M: int = Field(1000, ge=2, le=100_000)
    epsilon_t: float = Field(1e-5, gt=0, lt=1)


class IDDPMKeywords(Keywords):
    """Those of ``iDDPMPrecond``."""

    C_1: float = Field(0.001, gt=0, allow_inf_nan=False)
    C_2: float = Field(0.008, gt=0, allow_inf_nan=False)
    M: int = Field(1000, ge=2, le=100_000)


class Precond(nn.Module, ABC):
    """Denoiser D(x, sigma) = c_skip x + c_out F(c_in x, c_noise, labels), in float32.

    Args:
        given: own keywords.
        network: keywords of the network inside.

    Attributes:
        sigma_min: smallest noise level that it knows.
        sigma_max: largest one.
    """

    keywords: ClassVar[type[Keywords]]
    network: ClassVar[str]
    outputs: ClassVar[int] = 1  # channels of the network's output for each of the image
    sigma_min: float
    sigma_max: float

    def __init__(self, given: Any, network: dict[str, Any]) -> None:
        super().__init__()
        self.given, self.network_keywords = given, network
        kind = given.model_type or self.network
        if kind not in ("SongUNet", "DhariwalUNet"):
            raise ValueError(f"model_type is {kind[:40]!a}; allowed: SongUNet, DhariwalUNet")
        sizes = {
            "img_resolution": given.img_resolution,
            "in_channels": given.img_channels,
            "out_channels": given.img_channels * self.outputs,
            "label_dim": given.label_dim,
        }
        self.model = (
            SongUNet(SongKeywords(**network, **sizes))
            if kind == "SongUNet"
            else DhariwalUNet(DhariwalKeywords(**network, **sizes))
        )

    @abstractmethod
    def scalings(self, sigma: Tensor) -> Scalings:
        """Factors at noise levels sigma (B or 1, 1, 1, 1)."""

    def finish(self) -> None:
        """What follows from loaded buffers."""

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Estimate of x0.

        Args:
            x: noisy images, (B, C, H, W).
            sigma: noise levels, () or (B,).
            class_labels: one row of weights an image, (B, K); zeros by default.
            augment_labels: (B, A), or none.

        Returns:
            (B, C, H, W), float32.
        """
        x, sigma = x.float(), sigma.float().reshape(-1, 1, 1, 1)
        c, labels = self.scalings(sigma), None
        if self.given.label_dim:
            none = torch.zeros(1, self.given.label_dim, device=x.device)
            labels = none if class_labels is None else class_labels.float().reshape(len(x), -1)
        f = self.model(c.inner * x, c.noise.flatten(), labels, augment_labels)
        done: Tensor = c.skip * x + c.out * f[:, : x.shape[1]]
        return done

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that it knows, shape of ``sigma``."""
        return sigma


class EDMPrecond(Precond):
    """The preconditioner of EDM itself."""

    keywords = EDMKeywords
    network = "DhariwalUNet"

    def __init__(self, given: EDMKeywords, network: dict[str, Any]) -> None:
        super().__init__(given, network)
        self.sigma_min, self.sigma_max = given.sigma_min, given.sigma_max

    def scalings(self, sigma: Tensor) -> Scalings:
        """Unit variance at input and target."""
        data = self.given.sigma_data
        total = sigma.square() + data**2
        root = total.sqrt()
        return Scalings(data**2 / total, sigma * data / root, 1 / root, sigma.log() / 4)


class VPPrecond(Precond):
    """Networks of DDPM++ trained in the variance-preserving frame."""

    keywords = VPKeywords
    network = "SongUNet"

    def __init__(self, given: VPKeywords, network: dict[str, Any]) -> None:
        super().__init__(given, network)
        self.sigma_min, self.sigma_max = self._sigma(given.epsilon_t), self._sigma(1.0)

    def _sigma(self, t: float) -> float:
        return math.sqrt(math.expm1(self.given.beta_d * t**2 / 2 + self.given.beta_min * t))

    def scalings(self, sigma: Tensor) -> Scalings:
        """The network predicts the noise; its time runs from 0 to M - 1."""
        given = self.given
        # not log1p: these networks were trained with the rounding of this form
        squared = given.beta_min**2 + 2 * given.beta_d * (1 + sigma.square()).log()
        t = (squared.sqrt() - given.beta_min) / given.beta_d
        inner = 1 / (sigma.square() + 1).sqrt()
        return Scalings(torch.ones_like(sigma), -sigma, inner, (given.M - 1) * t)


class VEPrecond(Precond):
    """Networks of NCSN++ trained in the variance-exploding frame."""

    keywords = VEKeywords
    network = "SongUNet"

    def __init__(self, given: VEKeywords, network: dict[str, Any]) -> None:
        super().__init__(given, network)
        self.sigma_min, self.sigma_max = given.sigma_min, given.sigma_max

    def scalings(self, sigma: Tensor) -> Scalings:
        """The network predicts the noise with its sign turned."""
        one = torch.ones_like(sigma)
        return Scalings(one, sigma, one, (sigma / 2).log())


class IDDPMPrecond(Precond):
    """Networks trained on a table of M noise levels; half of their output is a variance."""

    keywords = IDDPMKeywords
    network = "DhariwalUNet"
    outputs = 2
    u: Tensor

    def __init__(self, given: IDDPMKeywords, network: dict[str, Any]) -> None:
        super().__init__(given, network)
        self.register_buffer("u", torch.empty(given.M + 1))

    def finish(self) -> None:
        """The range, from the table."""
        self.sigma_min, self.sigma_max = float(self.u[-2]), float(self.u[0])

    def _index(self, sigma: Tensor) -> Tensor:
        return (sigma.detach().float().reshape(-1, 1) - self.u).abs().argmin(1).reshape(sigma.shape)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest entries of the table."""
        return self.u[self._index(sigma)].to(sigma)

    def scalings(self, sigma: Tensor) -> Scalings:
        """The network predicts the noise; its time is a whole number."""
        noise = (self.given.M - 1 - self._index(sigma)).to(sigma)
        inner = 1 / (sigma.square() + 1).sqrt()
        return Scalings(torch.ones_like(sigma), -sigma, inner, noise)


KINDS: dict[str, type[Precond]] = {
    "EDMPrecond": EDMPrecond,
    "VEPrecond": VEPrecond,
    "VPPrecond": VPPrecond,
    "iDDPMPrecond": IDDPMPrecond,
}


def build(kind: str, keywords: dict[str, Any]) -> Precond:
    """A network of published sizes, its tensors without values (on the ``meta`` device).

    Args:
        kind: one of ``KINDS``.
        keywords: of its constructor, as the file has them.

    Raises:
        SolverBenchError: for an unknown kind, or keywords that no network has.
    """
    if kind not in KINDS:
        allowed = ", ".join(KINDS)
        raise SolverBenchError(f"the network is {kind[:80]!a}; known are {allowed}")
    made = KINDS[kind]
    own = {key: keywords[key] for key in keywords if key in made.keywords.model_fields}
    rest = {key: keywords[key] for key in keywords if key not in own}
    try:
        with torch.device("meta"):
            return made(made.keywords(**own), rest)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80]
        raise SolverBenchError(f"network keyword {where!a}: {first['msg'][:120]}") from error
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise SolverBenchError(f"network keywords: {str(error)[:120]}") from error
