"""The R3GAN discriminator, its losses and one step of its training; a leaf."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from solverbench import tensorfile
from solverbench.errors import SolverBenchError

FORMAT = "solverbench-discriminator-1"
SLOPE = 0.2  # of the leaky rectifier
EXPANSION = 2  # inner width of a block over its outer one
LOSSES = ("relativistic", "traditional")


class Sizes(NamedTuple):
    """Sizes of the stages, input side first; S stages take 4 * 2^(S - 1) pixels a side.

    Attributes:
        widths: channels of each stage.
        cardinalities: groups of the 3 x 3 convolutions of each stage.
        blocks: residual blocks of each stage.
    """

    widths: tuple[int, ...]
    cardinalities: tuple[int, ...]
    blocks: tuple[int, ...]


PRESETS = {
    "small-8": Sizes((32, 48), (2, 3), (1, 1)),
    "small-16": Sizes((32, 48, 64), (2, 3, 4), (1, 1, 1)),
    "r3gan-32": Sizes((768,) * 4, (96,) * 4, (2,) * 4),
    "r3gan-64": Sizes((384, 768, 768, 768, 768), (48, 96, 96, 96, 96), (2,) * 5),
}


class _Weight(nn.Module):
    """A weight without bias, drawn from N(0, gain^2 / fan_in)."""

    def __init__(self, *shape: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.zeros(shape)), gain

    def draw(self, rng: torch.Generator) -> None:
        """Initial values; a gain of 0 draws nothing."""
        std = self.gain / math.sqrt(math.prod(self.weight.shape[1:]))
        drawn = torch.randn(self.weight.shape, generator=rng) if std else torch.zeros(())
        self.weight.data.copy_(std * drawn)


class _Convolution(nn.Module):
    """A convolution that keeps the size."""

    def __init__(
        self, inputs: int, outputs: int, size: int = 1, groups: int = 1, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.Layer = _Weight(outputs, inputs // groups, size, size, gain=gain)
        self.padding, self.groups = size // 2, groups

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.Layer.weight, padding=self.padding, groups=self.groups)


class _Activation(nn.Module):
    """Bias and leaky rectifier, without gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.Bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(x + self.Bias[:, None, None], SLOPE)


class _Block(nn.Module):
    """Residual block; starts as the identity, because its last convolution starts at zero."""

    def __init__(self, width: int, groups: int, num_blocks: int) -> None:
        super().__init__()
        inner, gain = EXPANSION * width, math.sqrt(2 / (1 + SLOPE**2)) * num_blocks**-0.25
        self.LinearLayer1 = _Convolution(width, inner, gain=gain)
        self.NonLinearity1 = _Activation(inner)
        self.LinearLayer2 = _Convolution(inner, inner, size=3, groups=groups, gain=gain)
        self.NonLinearity2 = _Activation(inner)
        self.LinearLayer3 = _Convolution(inner, width, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.NonLinearity1(self.LinearLayer1(x))
        y = self.NonLinearity2(self.LinearLayer2(y))
        return x + self.LinearLayer3(y)  # type: ignore[no-any-return]


class _Blur(nn.Module):
    """Depthwise binomial blur that halves the size."""

    Kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("Kernel", torch.outer(row, row) / 64)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.Kernel.to(x).expand(x.shape[1], 1, 4, 4)
        return functional.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


class _Downsample(nn.Module):
    """Between two stages: blur, then a change of width where there is one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.Resampler = _Blur()
        self.LinearLayer = _Convolution(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.LinearLayer(self.Resampler(x))  # type: ignore[no-any-return]


class _Head(nn.Module):
    """After the last stage: a 4 x 4 map to one number a channel, then to the outputs."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.Basis = _Weight(width, 1, 4, 4)
        self.LinearLayer = _Weight(num_outputs, width)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.Basis.weight, groups=x.shape[1]).flatten(1)
        return functional.linear(x, self.LinearLayer.weight)


class _Stage(nn.Module):
    """Residual blocks and a transition."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.Layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.Layers:
            x = layer(x)
        return x


class R3GANDiscriminator(nn.Module):
    """Scores images, high for real ones; names of its tensors are those of published weights.

    All weights are zero until ``init`` or ``load_state_dict``.

    Args:
        widths: channels of each stage, input side first.
        cardinalities: groups of the 3 x 3 convolutions of each stage.
        blocks: residual blocks of each stage.
        num_channels: C of the images.
        num_outputs: width of the last linear map; the score is the sum over it. Published
            conditional networks have several, and their labels are left out of account.

    Source: R3GAN (arXiv 2501.05441), appendix; gs-gas.md section 8.2.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        cardinalities: tuple[int, ...],
        blocks: tuple[int, ...],
        num_channels: int,
        num_outputs: int = 1,
    ) -> None:
        super().__init__()
        if not len(widths) == len(cardinalities) == len(blocks):
            raise ValueError("widths, cardinalities and blocks need one number a stage each")
        self.sizes = Sizes(tuple(widths), tuple(cardinalities), tuple(blocks))
        self.num_channels, self.resolution = num_channels, 4 * 2 ** (len(widths) - 1)
        self.ExtractionLayer = _Convolution(num_channels, widths[0])
        ends = [_Downsample(*pair) for pair in pairwise(widths)]
        stages = zip(widths, cardinalities, blocks, strict=True)
        self.MainLayers = nn.ModuleList(
            _Stage(*(_Block(width, groups, sum(blocks)) for _ in range(num)), end)
            for (width, groups, num), end in zip(
                stages, [*ends, _Head(widths[-1], num_outputs)], strict=True
            )
        )

    def init(self, rng: torch.Generator) -> "R3GANDiscriminator":
        """Draw the weights of the paper's random start, on the CPU; biases are zero.

        Each block starts as the identity, so that the network starts linear.
        """
        for module in self.modules():
            if isinstance(module, _Weight):
                module.draw(rng)
            if isinstance(module, _Activation):
                module.Bias.data.zero_()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B,) of images or latents x (B, C, H, W)."""
        x = self.ExtractionLayer(x)
        for stage in self.MainLayers:
            x = stage(x)
        return x.sum(1)


def preset(name: str, num_channels: int, rng: torch.Generator) -> R3GANDiscriminator:
    """A discriminator of known sizes, drawn anew.

    Args:
        name: one of ``PRESETS``.
        num_channels: C of the images.
        rng: on the CPU.

    Raises:
        ValueError: for another name.
    """
    if name not in PRESETS:
        raise ValueError(f"discriminator is {name!r}; allowed: {', '.join(PRESETS)}")
    return R3GANDiscriminator(*PRESETS[name], num_channels=num_channels).init(rng)


def of_state(state: dict[str, Tensor]) -> R3GANDiscriminator:
    """The discriminator whose ``state_dict`` this is; sizes are read from the tensors.

    Raises:
        SolverBenchError: where the tensors are not those of an R3GAN discriminator.
    """
    try:
        widths, cardinalities, blocks = list[int](), list[int](), list[int]()
        for s in range(len({key.split(".")[1] for key in state if key.startswith("Main")})):
            first = f"MainLayers.{s}.Layers.0.LinearLayer"
            inner, width = state[f"{first}1.Layer.weight"].shape[:2]
            widths.append(width)
            cardinalities.append(inner // state[f"{first}2.Layer.weight"].shape[1])
            ends = (f"MainLayers.{s}.", ".LinearLayer3.Layer.weight")
            blocks.append(sum(k.startswith(ends[0]) and k.endswith(ends[1]) for k in state))
        last = f"MainLayers.{len(widths) - 1}.Layers.{blocks[-1]}.LinearLayer.weight"
        made = R3GANDiscriminator(
            tuple(widths),
            tuple(cardinalities),
            tuple(blocks),
            state["ExtractionLayer.Layer.weight"].shape[1],
            len(state[last]),
        )
        made.to(state[last].dtype).load_state_dict(state)
    except (KeyError, IndexError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise SolverBenchError("the tensors are not those of an R3GAN discriminator") from error
    return made


def save(path: Path, discriminator: R3GANDiscriminator, facts: dict[str, Any]) -> None:
    """Write the weights in half precision, with sizes and ``facts`` (JSON values)."""
    tensors = {key: value.half() for key, value in discriminator.state_dict().items()}
    sizes = discriminator.sizes._asdict() | {"num_channels": discriminator.num_channels}
    tensorfile.write(path, FORMAT, tensors, facts | {"sizes": sizes})


def load(path: Path) -> R3GANDiscriminator:
    """Read what ``save`` wrote, in float32.

    Raises:
        SolverBenchError: for a missing, torn or foreign file.
    """
    tensors, _ = tensorfile.read(path, FORMAT)
    return of_state({key: value.float() for key, value in tensors.items()})


def discriminator_loss(real: Tensor, fake: Tensor, loss: str = "relativistic") -> Tensor:
    """What the discriminator minimises, without penalties.

    Args:
        real: scores of the teacher's samples, (B,).
        fake: scores of the student's samples, (B,).
        loss: ``relativistic`` compares the pairs, ``traditional`` scores each alone.

    Returns:
        (B,).

    Source: GAS (arXiv 2510.17699), eq. 10 and 9, in the form that does not saturate; gs-gas.md
    section 8.3.
    """
    if loss == "relativistic":
        return functional.softplus(fake - real)
    return functional.softplus(-real) + functional.softplus(fake)


def generator_loss(real: Tensor, fake: Tensor, loss: str = "relativistic") -> Tensor:
    """What the solver minimises; arguments and result as in ``discriminator_loss``."""
    return functional.softplus(real - fake if loss == "relativistic" else -fake)


def gradient_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """Squared norm of each score's gradient in its own image, (B,); differentiable.

    Args:
        scores: (B,), computed from ``images``.
        images: (B, C, H, W), requires gradients.
    """
    (slope,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return slope.square().flatten(1).sum(1)


def discriminator_terms(
    discriminator: nn.Module, real: Tensor, fake: Tensor, loss: str = "relativistic"
) -> dict[str, Tensor]:
    """Adversarial loss, penalties and score gap of pairs.

    Args:
        discriminator: scores images.
        real: the teacher's samples, (B, C, H, W).
        fake: the student's samples, (B, C, H, W).
        loss: see ``discriminator_loss``.

    Returns:
        ``loss_adv``, ``scores_fake`` = D(real) - D(fake), ``r1`` (on real), ``r2`` (on fake), each
        (B,).
    """
    images = torch.cat([real, fake]).detach().requires_grad_(True)  # one pass for both
    scores = discriminator(images)
    r1, r2 = gradient_penalty(scores, images).chunk(2)
    above, below = scores.chunk(2)
    adversarial = discriminator_loss(above, below, loss)
    return {"loss_adv": adversarial, "scores_fake": above - below, "r1": r1, "r2": r2}


def discriminator_step(
    discriminator: nn.Module,
    optimiser: torch.optim.Optimizer,
    pair: tuple[Tensor, Tensor],
    gamma: float,
    loss: str = "relativistic",
) -> dict[str, Tensor]:
    """One step on mean(adversarial loss + gamma / 2 (R1 + R2)), R1 on real, R2 on fake samples.

    A step whose gradient is not finite changes nothing.

    Args:
        discriminator: trained in place.
        optimiser: of its parameters.
        pair: real and fake samples, (B, C, H, W) each.
        gamma: weight of the penalties.
        loss: see ``discriminator_loss``.

    Returns:
        Means of ``discriminator_terms``, () each, without gradients.

    Source: GAS (arXiv 2510.17699), eq. 22; gs-gas.md sections 8.3 and 8.4.
    """
    terms = discriminator_terms(discriminator, *pair, loss)
    total = (terms["loss_adv"] + gamma / 2 * (terms["r1"] + terms["r2"])).mean()
    optimiser.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    grads = [p.grad for p in discriminator.parameters() if p.grad is not None]
    if bool(torch.stack([grad.sum() for grad in grads]).isfinite().all()):
        optimiser.step()
    return {key: value.detach().mean() for key, value in terms.items()}
