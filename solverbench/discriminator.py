"""The R3GAN discriminator, its losses and one step of its training; a leaf."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from solverbench import tensorfile
from solverbench.discriminator_layers import (
    Activation,
    Block,
    Convolution,
    Downsample,
    Head,
    Stage,
    Weight,
)
from solverbench.errors import SolverBenchError

FORMAT = "solverbench-discriminator-1"
LOSSES = ("relativistic", "traditional")
PRECISIONS = ("float32", "stored")
MOST_STAGES = 12  # 8192 pixels a side
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


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
LATENT = {"latent-3": 3, "latent-4": 4}  # channels; all else as r3gan-64
PRESETS |= dict.fromkeys(LATENT, PRESETS["r3gan-64"])


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

    Attributes:
        dtypes: in which each stage computes, the convolution from the image as the first; None
            for the type of the weights.

    Source: R3GAN (arXiv 2501.05441), appendix; gs-gas.md section 8.2.
    """

    dtypes: tuple[torch.dtype, ...] | None = None

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
        self.ExtractionLayer = Convolution(num_channels, widths[0])
        ends = [Downsample(*pair) for pair in pairwise(widths)]
        stages = zip(widths, cardinalities, blocks, strict=True)
        self.MainLayers = nn.ModuleList(
            Stage(*(Block(width, groups, sum(blocks)) for _ in range(num)), end)
            for (width, groups, num), end in zip(
                stages, [*ends, Head(widths[-1], num_outputs)], strict=True
            )
        )

    def init(self, rng: torch.Generator) -> "R3GANDiscriminator":
        """Draw the weights of the paper's random start, on the CPU; biases are zero.

        Each block starts as the identity, so that the network starts linear.
        """
        for module in self.modules():
            if isinstance(module, Weight):
                module.draw(rng)
            if isinstance(module, Activation):
                module.Bias.data.zero_()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B,) of images or latents x (B, C, H, W); float32 where stages have types."""
        if self.dtypes is None:
            x = self.ExtractionLayer(x)
            for stage in self.MainLayers:
                x = stage(x)
            return x.sum(1)
        x = _in_dtype(self.ExtractionLayer, x, self.dtypes[0])
        for stage, dtype in zip(self.MainLayers, self.dtypes, strict=True):
            x = _in_dtype(stage, x, dtype)
        return x.float().sum(1)

    def logits(self, x: Tensor) -> Tensor:
        """Scores (B,), float32, of images or latents x (B, C, H, W) of any type.

        Differentiable twice, in x and in the weights.
        """
        done: Tensor = self(x.to(self.ExtractionLayer.Layer.weight.dtype))
        return done.float()

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What training changes."""
        return [p for p in self.parameters() if p.requires_grad]


def _in_dtype(module: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    tensors = {key: value.to(dtype) for key, value in module.named_parameters()}
    return cast(Tensor, functional_call(module, tensors, (x.to(dtype),)))


def preset(name: str, num_channels: int, rng: torch.Generator) -> R3GANDiscriminator:
    """A discriminator of known sizes, drawn anew.

    Args:
        name: one of ``PRESETS``.
        num_channels: C of the images.
        rng: on the CPU.

    Raises:
        ValueError: for another name, or channels that the preset does not take.
    """
    if name not in PRESETS:
        raise ValueError(f"discriminator is {name!r}; allowed: {', '.join(PRESETS)}")
    if LATENT.get(name, num_channels) != num_channels:
        raise ValueError(f"{name} is for {LATENT[name]} channels; got {num_channels}")
    return R3GANDiscriminator(*PRESETS[name], num_channels=num_channels).init(rng)


def of_state(state: dict[str, Tensor]) -> R3GANDiscriminator:
    """The discriminator whose ``state_dict`` this is; sizes are read from the tensors.

    Args:
        state: by name; the tensors become its own.

    Raises:
        SolverBenchError: where the tensors are not those of an R3GAN discriminator.
    """
    try:
        widths, cardinalities, blocks = list[int](), list[int](), list[int]()
        stages = {key.split(".")[1] for key in state if key.startswith("Main")}
        if len(stages) > MOST_STAGES:
            raise ValueError("too many stages")
        for s in range(len(stages)):
            first = f"MainLayers.{s}.Layers.0.LinearLayer"
            inner, width = state[f"{first}1.Layer.weight"].shape[:2]
            widths.append(width)
            cardinalities.append(inner // state[f"{first}2.Layer.weight"].shape[1])
            ends = (f"MainLayers.{s}.", ".LinearLayer3.Layer.weight")
            blocks.append(sum(k.startswith(ends[0]) and k.endswith(ends[1]) for k in state))
        last = f"MainLayers.{len(widths) - 1}.Layers.{blocks[-1]}.LinearLayer.weight"
        sizes = Sizes(tuple(widths), tuple(cardinalities), tuple(blocks))
        channels = state["ExtractionLayer.Layer.weight"].shape[1]
        with torch.device("meta"):  # no memory yet: a hostile file asks for any sizes
            made = R3GANDiscriminator(*sizes, channels, len(state[last]))
        made.load_state_dict(state, assign=True)
    except (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise SolverBenchError("the tensors are not those of an R3GAN discriminator") from error
    return made


def save(
    path: Path,
    discriminator: R3GANDiscriminator,
    facts: dict[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the weights, half precision by default, with sizes and ``facts`` (JSON values)."""
    tensors = {key: value.to(dtype) for key, value in discriminator.state_dict().items()}
    sizes = discriminator.sizes._asdict() | {"num_channels": discriminator.num_channels}
    dtypes = [str(stage).removeprefix("torch.") for stage in discriminator.dtypes or ()]
    tensorfile.write(path, FORMAT, tensors, facts | {"sizes": sizes, "stage_dtypes": dtypes})


def load(path: Path, precision: str = "float32") -> R3GANDiscriminator:
    """Read what ``save`` wrote, weights in float32.

    Args:
        path: the file.
        precision: ``float32``, or ``stored`` for stages that compute in the types of the file.

    Raises:
        SolverBenchError: for a missing, torn or foreign file.
        ValueError: for another precision.
    """
    check_precision(precision)
    tensors, facts = tensorfile.read(path, FORMAT)
    for key in tensors:
        tensors[key] = tensors[key].float()  # one by one, for no two copies of all
    made = of_state(tensors)
    names = facts.get("stage_dtypes", [])
    known = type(names) is list and all(type(n) is str and n in DTYPES for n in names)
    if not known or len(names) not in (0, len(made.MainLayers)):
        raise SolverBenchError(f"{path}: the stages of the discriminator have no types")
    if precision == "stored" and names:
        made.dtypes = tuple(DTYPES[name] for name in names)
    return made


def check_precision(precision: str) -> None:
    """Refuse what is no precision.

    Raises:
        ValueError: names those there are.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}")


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


def discriminator_gradient(
    discriminator: nn.Module,
    pair: tuple[Tensor, Tensor],
    gamma: float,
    loss: str = "relativistic",
    size: int | None = None,
) -> dict[str, Tensor]:
    """Gradients of mean(adversarial loss + gamma / 2 (R1 + R2)), R1 on real, R2 on fake samples.

    Args:
        discriminator: its parameters get the gradients, others than these are dropped.
        pair: real and fake samples, (B, C, H, W) each.
        gamma: weight of the penalties.
        loss: see ``discriminator_loss``.
        size: pairs at once, all by default.

    Returns:
        Means of ``discriminator_terms``, () each, without gradients.

    Source: GAS (arXiv 2510.17699), eq. 22; gs-gas.md sections 8.3 and 8.4.
    """
    discriminator.zero_grad()
    num, found = len(pair[0]), []
    parts = [torch.split(images, size or num) for images in pair]
    for real, fake in zip(*parts, strict=True):
        terms = discriminator_terms(discriminator, real, fake, loss)
        total = (terms["loss_adv"] + gamma / 2 * (terms["r1"] + terms["r2"])).mean()
        share = total * (len(real) / num)
        share.backward()  # type: ignore[no-untyped-call]
        found.append({key: value.detach() for key, value in terms.items()})
    return {key: torch.cat([terms[key] for terms in found]).mean() for key in found[0]}


def adam_of(parameters: Iterable[nn.Parameter], device: torch.device) -> torch.optim.Adam:
    """The discriminator's optimiser; fused on CUDA, where it leaves out a step by itself."""
    return torch.optim.Adam(parameters, fused=True if device.type == "cuda" else None)


def step_where_finite(discriminator: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """One step of the optimiser; none where a gradient is not finite.

    A fused optimiser is told so on the device, by the sign that PyTorch's gradient scaler gives it,
    and nothing waits.
    """
    grads = [p.grad for p in discriminator.parameters() if p.grad is not None]
    finite = torch.stack([grad.sum() for grad in grads]).isfinite().all()
    if optimiser.defaults.get("fused"):
        told: Any = optimiser
        told.found_inf = (~finite).float()
        optimiser.step()
    elif bool(finite):
        optimiser.step()


def discriminator_step(
    discriminator: nn.Module,
    optimiser: torch.optim.Optimizer,
    pair: tuple[Tensor, Tensor],
    gamma: float,
    loss: str = "relativistic",
) -> dict[str, Tensor]:
    """``discriminator_gradient``, then ``step_where_finite``; arguments and result as theirs."""
    logs = discriminator_gradient(discriminator, pair, gamma, loss)
    step_where_finite(discriminator, optimiser)
    return logs
