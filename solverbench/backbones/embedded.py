"""The backbones that ship with the package: small EDM denoisers, trained by our own recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from solverbench import tensorfile
from solverbench.backbones.base import Backbone, Condition
from solverbench.backbones.pretraining import WEIGHTS_FORMAT, build
from solverbench.backbones.unet import EdmDenoiser
from solverbench.files import sha256_of
from solverbench.schedule import VPLinear

FOLDER = Path(__file__).parent / "weights"


class Embedded(Backbone):
    """A shipped denoiser in the VP frame of the paper's pixel models.

    Args:
        weights: another safetensors file of the same recipe; the shipped one by default.
        guidance: classifier-free guidance scale; 1 for a single conditional call.
        t_min: where students stop.
        channels_last: memory format of the network; a little faster on CPUs.
        device: where it lives.
    """

    num_classes: ClassVar[int] = 0

    def __init__(
        self,
        *,
        weights: str | None = None,
        guidance: float = 1.0,
        t_min: float = 1e-3,
        channels_last: bool = True,
        device: str = "cpu",
    ) -> None:
        path = Path(weights) if weights else FOLDER / f"{self.name}.safetensors"
        self.network, facts = load_denoiser(path)
        self.weights_sha256 = sha256_of(path)
        if guidance != 1.0 and not self.num_classes:
            raise ValueError(f"{self.name} is unconditional; guidance must stay 1")
        self.guidance, self.device = guidance, torch.device(device)
        self.network.to(self.device)
        if channels_last:
            move: Any = self.network.to  # the stubs of its overloads differ between versions
            move(memory_format=torch.channels_last)
        self.schedule = VPLinear(0.1, 20.0, t_min)
        self.t_floor = 1e-4
        self.extractor = self.name
        self.discriminator = FOLDER / f"{self.name}-discriminator.safetensors"
        shape = facts["network"]
        self.state_shape = (shape["num_channels"], shape["resolution"], shape["resolution"])

    def raw(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """The network's estimate of x0, guided where guidance is not 1."""
        alpha, shat = self.schedule.alpha(t).to(x), self.schedule.shat(t).to(x)
        y, labels = x / alpha, condition.labels if condition else None
        if self.guidance == 1.0 or labels is None:
            x0: Tensor = self.network(y, shat, labels)
            return x0
        null = torch.full_like(labels, self.num_classes)
        both = self.network(torch.cat([y, y]), shat, torch.cat([null, labels]))
        free, given = both.chunk(2)
        guided: Tensor = free + self.guidance * (given - free)
        return guided

    def condition(self, seeds: Sequence[int]) -> Condition | None:
        """Class = seed mod number of classes."""
        if not self.num_classes:
            return None
        labels = torch.tensor([seed % self.num_classes for seed in seeds], device=self.device)
        return Condition(labels)


class Digits(Embedded):
    """Handwritten digits, 8 x 8 grey, unconditional."""

    name = "digits"


class Cifar16(Embedded):
    """CIFAR-10 at 16 x 16, class-conditional with a null class."""

    name = "cifar16"
    num_classes = 10


def load_denoiser(path: Path) -> tuple[EdmDenoiser, dict[str, Any]]:
    """Read a denoiser that the training recipe exported.

    Args:
        path: safetensors, half precision.

    Returns:
        The network in float32, frozen and in eval mode, and the facts of its making.

    Raises:
        SolverBenchError: for a missing, torn or foreign file.
    """
    tensors, facts = tensorfile.read(path, WEIGHTS_FORMAT)
    model = build(facts["network"])
    model.load_state_dict({key: value.float() for key, value in tensors.items()})
    return model.eval().requires_grad_(False), facts
