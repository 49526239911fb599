"""The recipe that makes the embedded denoisers: EDM training of a small U-Net on the CPU."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverbench import tensorfile
from solverbench.backbones.unet import EdmDenoiser, UNet
from solverbench.errors import SolverBenchError


@dataclass(frozen=True)
class Pretraining:
    """Everything that decides the weights, beside the images and the machine.

    Attributes:
        network: arguments of ``UNet``.
        num_images: training images seen; the schedule ends with them.
        batch: images a step.
        lr: AdamW learning rate after ``warmup_images``.
        decay: last share of training, over which the rate falls linearly to 0.
        half_life: of the weight average, images (at most 5 % of those seen so far).
        label_dropout: share of labels replaced by the null label.
        seed: of weights, batches, noise and dropout.
        bfloat16: autocast of the network in training.
    """

    network: dict[str, Any]
    num_images: int
    batch: int = 128
    lr: float = 1e-3
    warmup_images: int = 50_000
    decay: float = 0.3
    half_life: int = 50_000
    label_dropout: float = 0.15
    seed: int = 0
    bfloat16: bool = True

    def rate(self, seen: int) -> float:
        """Learning rate after ``seen`` images."""
        left = (self.num_images - seen) / (self.decay * self.num_images)
        return self.lr * min(1.0, (seen + self.batch) / self.warmup_images, left)


WEIGHTS_FORMAT = "solverbench-denoiser-1"
CHECKPOINT_FORMAT = "solverbench-pretraining-1"

Report = Callable[[int, float], None]  # images seen, mean loss since the last report


def build(network: dict[str, Any]) -> EdmDenoiser:
    """The untrained denoiser of a recipe."""
    return EdmDenoiser(UNet(**network))


def noise_levels(num: int, rng: torch.Generator) -> Tensor:
    """EDM noise levels of a batch: log-normal, with 6 % log-uniform ones to cover the ends.

    Args:
        num: batch size B.
        rng: generator.

    Returns:
        (B,), float32, between 0.003 and 160 for the uniform share.

    Source: Karras et al. (2022), table 1 (P_mean -1 and P_std 1.3 for these small images).
    """
    normal = torch.exp(-1.0 + 1.3 * torch.randn(num, generator=rng))
    low, high = math.log(0.003), math.log(160)
    uniform = torch.exp(low + (high - low) * torch.rand(num, generator=rng))
    return torch.where(torch.rand(num, generator=rng) < 0.06, uniform, normal)


class Trainer:
    """One training run: state, steps and checkpoints.

    Step k draws all its randomness from (seed, k), so a resumed run continues bit for bit.

    Args:
        recipe: what to do.
        pixels: (M, C, H, W), uint8.
        labels: (M,), int64.
    """

    def __init__(self, recipe: Pretraining, pixels: Tensor, labels: Tensor) -> None:
        self.recipe, self.pixels, self.labels = recipe, pixels, labels
        torch.manual_seed(recipe.seed)
        self.model = build(recipe.network)
        self.parameters = dict(self.model.named_parameters())
        self.average = {k: p.detach().clone() for k, p in self.parameters.items()}
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=recipe.lr, weight_decay=0.0, fused=True
        )
        self.num_classes = recipe.network.get("num_classes", 0)
        self.step = 0
        self.seconds = 0.0

    @property
    def seen(self) -> int:
        """Images seen so far."""
        return self.step * self.recipe.batch

    def loss(self, rng: torch.Generator) -> Tensor:
        """Weighted denoising error of one batch, mean over pixels.

        Source: Karras et al. (2022), eq. 2 with the weight of table 1.
        """
        rows = torch.randint(len(self.labels), (self.recipe.batch,), generator=rng)
        x0 = self.pixels[rows].float() / 127.5 - 1
        labels = None
        if self.num_classes:
            dropped = torch.rand(len(rows), generator=rng) < self.recipe.label_dropout
            labels = torch.where(dropped, self.num_classes, self.labels[rows])
        sigma = noise_levels(len(rows), rng)
        x = x0 + sigma[:, None, None, None] * torch.randn(x0.shape, generator=rng)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.recipe.bfloat16):
            denoised = self.model(x, sigma, labels)
        weight = (sigma**2 + self.model.sigma_data**2) / (sigma * self.model.sigma_data) ** 2
        error = (denoised.float() - x0) ** 2
        return torch.mean(weight[:, None, None, None] * error)

    def advance(self) -> Tensor:
        """One step; returns the loss, ()."""
        own = (self.recipe.seed * 1_000_003 + self.step) % 2**32  # generators read 32 bits
        rng = torch.Generator().manual_seed(own)
        self.optimiser.param_groups[0]["lr"] = self.recipe.rate(self.seen)
        loss = self.loss(rng)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimiser.step()
        self.step += 1
        keep = 0.5 ** (self.recipe.batch / min(self.recipe.half_life, 0.05 * self.seen))
        with torch.no_grad():
            now: list[Tensor] = list(self.parameters.values())
            torch._foreach_lerp_(list(self.average.values()), now, 1 - keep)
        return loss.detach()

    def run(self, path: Path, report: Report, every: float = 60.0) -> None:
        """Train to the end of the schedule, saving to ``path`` about every ``every`` seconds."""
        start, saved, losses = time.monotonic(), time.monotonic(), []
        before = self.seconds
        while self.seen < self.recipe.num_images:
            losses.append(float(self.advance()))
            now = time.monotonic()
            self.seconds = before + now - start
            if now - saved > every or self.seen >= self.recipe.num_images:
                self.save(path)
                report(self.seen, sum(losses) / len(losses))
                saved, losses = now, []

    def save(self, path: Path) -> None:
        """Write the whole state."""
        tensors = {f"model.{k}": p.detach() for k, p in self.parameters.items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for key, parameter in self.parameters.items():
            for name, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"{name}.{key}"] = value
        facts = {"step": self.step, "seconds": self.seconds, "recipe": asdict(self.recipe)}
        tensorfile.write(path, CHECKPOINT_FORMAT, tensors, facts)

    def load(self, path: Path) -> None:
        """Continue from a file that ``save`` wrote.

        Raises:
            SolverBenchError: where it belongs to another recipe. The number of images alone may
                change, and only while both runs are still on the plateau of the learning rate.
        """
        tensors, facts = tensorfile.read(path, CHECKPOINT_FORMAT)
        ours, theirs = json.loads(json.dumps(asdict(self.recipe))), facts["recipe"]
        if ours | {"num_images": 0} != theirs | {"num_images": 0}:
            raise SolverBenchError(f"{path} is of another recipe; remove it or use its options")
        seen = facts["step"] * self.recipe.batch
        plateau = (1 - self.recipe.decay) * min(ours["num_images"], theirs["num_images"])
        if ours != theirs and seen > plateau:
            raise SolverBenchError(
                f"{path} has seen {seen:,} images; to change their number it must be continued "
                f"before {plateau:,.0f}, where the learning rate begins to fall; "
                f"keep {theirs['num_images']}"
            )
        self.step, self.seconds = facts["step"], facts["seconds"]
        for key, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"model.{key}"])
            self.average[key].copy_(tensors[f"average.{key}"])
            self.optimiser.state[parameter] = {
                name: tensors[f"{name}.{key}"] for name in ("step", "exp_avg", "exp_avg_sq")
            }

    def export(self, path: Path, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the averaged weights in half precision.

        Args:
            path: safetensors file.
            facts: what to say of them beside the recipe (data, loss, ...).

        Returns:
            All facts in the file.
        """
        recipe = asdict(self.recipe)
        facts = {"network": recipe["network"], "recipe": recipe, "images": self.seen} | facts
        facts["core_seconds"] = round(self.seconds)
        facts["num_parameters"] = sum(value.numel() for value in self.average.values())
        half = {key: value.half() for key, value in self.average.items()}
        tensorfile.write(path, WEIGHTS_FORMAT, half, facts)
        return facts
