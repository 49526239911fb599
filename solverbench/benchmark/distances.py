"""Differentiable distances of samples, for training learnable solvers."""

from typing import Protocol

import torch
from torch import Tensor, nn

from solverbench.errors import SolverBenchError
from solverbench.images import Extractor

FLOOR = 1e-3  # added to squared norms of activations


class Decoder(Protocol):
    """What a distance asks of a backbone."""

    def decode(self, x: Tensor) -> Tensor:
        """Map states (B, C, H, W) to images in [-1, 1]."""
        ...


class Distance:
    """Compares solver states with the teacher's; not negative, 0 for equal states.

    A subclass writes ``between``; also ``embed``, where it compares something else than states, so
    that the teacher's half can be kept; or ``__call__`` alone, and nothing of it is kept.

    Args:
        backbone: decodes states where images are compared.
        extractor: gives the network for perceptual distances; None where there is none.

    Raises:
        TypeError: where a subclass writes neither ``between`` nor ``__call__``.
    """

    def __init__(self, backbone: Decoder, extractor: Extractor | None = None) -> None:
        self.backbone, self.extractor = backbone, extractor
        kind = type(self)
        if kind.between is Distance.between and kind.__call__ is Distance.__call__:
            raise TypeError(f"distance {kind.__name__} needs a method 'between' or '__call__'")

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Distances (B,) of states (B, C, H, W); gradients flow into ``student`` only."""
        return self.between(student, self.embed(target))

    def embed(self, target: Tensor) -> tuple[Tensor, ...]:
        """What is compared of the teacher's states (B, C, H, W): (B, ...) each, without graph.

        A row says nothing of the other rows; the states themselves unless overridden.
        """
        return (target.detach(),)

    def between(self, student: Tensor, embedded: tuple[Tensor, ...]) -> Tensor:
        """Distances (B,) of states (B, C, H, W) to what ``embed`` gave of the teacher's."""
        (target,) = embedded
        return self(student, target)

    @property
    def embeds(self) -> bool:
        """Whether ``embed`` is work that is worth keeping, and all that is read of the teacher."""
        kind = type(self)
        return kind.embed is not Distance.embed and kind.__call__ is Distance.__call__


class L1(Distance):
    """Mean absolute difference of states."""

    def between(self, student: Tensor, embedded: tuple[Tensor, ...]) -> Tensor:
        """Mean over C, H, W."""
        (target,) = embedded
        return (student - target).abs().flatten(1).mean(dim=1)


class L2(Distance):
    """Mean squared difference of states."""

    def between(self, student: Tensor, embedded: tuple[Tensor, ...]) -> Tensor:
        """Mean over C, H, W."""
        (target,) = embedded
        return (student - target).square().flatten(1).mean(dim=1)


class Feature(Distance):
    """Difference of normalised activations of the extractor's perceptual network.

    That network is not the one that metrics read, so a solver is never trained on what it is
    measured by.

    Raises:
        SolverBenchError: where the extractor has no such network.

    Source: Zhang et al. (2018), eq. 1, with unit weights and our own small network; not LPIPS.
        Differs: a floor under the norms keeps gradients small where activations vanish.
    """

    def __init__(self, backbone: Decoder, extractor: Extractor | None = None) -> None:
        super().__init__(backbone, extractor)
        stages = extractor.perceptual() if extractor is not None else None
        if stages is None:
            whose = f"extractor '{extractor.name}'" if extractor else "this backbone"
            raise SolverBenchError(
                f"{whose} has no network for distance 'feature'; use distance 'l1' or 'l2'."
            )
        self.stages = stages

    @torch.no_grad()
    def embed(self, target: Tensor) -> tuple[Tensor, ...]:
        """Activations (B, C_i, H_i, W_i) of each stage, float32."""
        return tuple(self.activations(target))

    def between(self, student: Tensor, embedded: tuple[Tensor, ...]) -> Tensor:
        """Sum over stages and channels, mean over pixels; float32 inside, dtype of ``student``."""
        total = student.new_zeros(len(student))
        for a, b in zip(self.activations(student), embedded, strict=True):
            total = total + (a - b).square().sum(dim=1).mean(dim=(1, 2))
        return total

    def activations(self, states: Tensor) -> list[Tensor]:
        """Activations (B, C_i, H_i, W_i) of each stage at unit length over channels."""
        if isinstance(self.stages, nn.Module):
            self.stages.to(states.device)
        images = self.backbone.decode(states).float()
        return [
            a * (a.square().sum(dim=1, keepdim=True) + FLOOR).rsqrt() for a in self.stages(images)
        ]
