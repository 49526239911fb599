"""What a backbone is: a pretrained denoiser with its schedule, noise, conditions and decoding."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from solverbench.schedule import NoiseSchedule, Output, Prediction, Time, float64


@dataclass(frozen=True, eq=False)
class Condition:
    """What the network is conditioned on, a row a sample.

    Attributes:
        labels: classes, or places of prompts among ``Backbone.prompt_lines``, (B,), int64.
        context: what the network makes of them, (B, ...), once ``Backbone.prepared`` has done so.
    """

    labels: Tensor
    context: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> "Condition":
        """Some of the rows."""
        return Condition(self.labels[rows], None if self.context is None else self.context[rows])

    def joined(self, other: "Condition") -> "Condition":
        """The rows of both, these first; prepared where both are."""
        parts = self.context, other.context
        both = None if parts[0] is None or parts[1] is None else torch.cat([parts[0], parts[1]])
        return Condition(torch.cat([self.labels, other.labels]), both)

    def to(self, device: torch.device) -> "Condition":
        """The same on another device."""
        context = None if self.context is None else self.context.to(device)
        return Condition(self.labels.to(device), context)


@dataclass
class Count:
    """Network use, counted.

    Attributes:
        calls: evaluations, guided pairs counting once.
        rows: batch rows that went through the network.
        samples: batch rows of the evaluations.
    """

    calls: int = 0
    rows: int = 0
    samples: int = 0

    def add(self, other: "Count", times: int = 1) -> None:
        """Count what ``other`` has counted, so many times."""
        self.calls += times * other.calls
        self.rows += times * other.rows
        self.samples += times * other.samples


class Backbone(ABC):
    """A pretrained diffusion model as solvers see it.

    States are float32 (float64 allowed), times and schedule float64, the network keeps its own
    type. Differentiable in the state and in the time.

    Attributes:
        name: registered name.
        schedule: noise schedule; its ``facts`` are the frame.
        state_shape: what solvers integrate, (C, H, W).
        output: what the network gives: ``x0``, ``eps`` or ``v``.
        t_floor: smallest time the network was trained for.
        extractor: plugin that measures its images, or None.
        discriminator: weights of a pretrained discriminator for GAS, or None.
        network: the module whose forward passes are counted, parameters frozen.
        weights_sha256: identity of the weights.
        quantisation: 8-bit rule of its images, ``edm`` (rounds) or ``adm`` (floors).
        prompt_lines: prompts by their labels; empty where conditions are no text.
        device: where it lives.
        player: makes passes without gradients in place of ``replay.play``, where it is set.
    """

    name: ClassVar[str]
    schedule: NoiseSchedule
    state_shape: tuple[int, int, int]
    output: Output = "x0"
    t_floor: float
    extractor: str | None = None
    discriminator: Path | None = None
    network: nn.Module
    weights_sha256: str = ""
    quantisation: Literal["edm", "adm"] = "edm"
    prompt_lines: Sequence[str] = ()
    device: torch.device = torch.device("cpu")
    player: Callable[..., Tensor] | None = None
    _counts: tuple[Count, ...] = ()

    @abstractmethod
    def raw(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Network output for x (B, C, H, W) at time t (), shape and dtype of x."""

    def evaluate(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """One counted evaluation: ``raw`` for x (B, C, H, W) at time t ()."""
        for count in self._counts:
            count.calls += 1
            count.samples += len(x)
        return self.raw(x, t, condition)

    def predict(self, x: Tensor, t: Time, condition: Condition | None = None) -> Prediction:
        """Data and noise predictions.

        Args:
            x: state, (B, C, H, W).
            t: time, ().
            condition: from ``condition``, or None.

        Returns:
            ``.x0`` and ``.eps``, (B, C, H, W), dtype of ``x``.
        """
        t = float64(t)
        scales = self.schedule.alpha(t).to(x), self.schedule.sigma(t).to(x)
        return Prediction(x, self.evaluate(x, t, condition), self.output, scales)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Unit-variance noise, one CPU generator a seed: (B, C, H, W), float32.

        Raises:
            ValueError: for seeds outside 0 .. 2^32 - 1, which would repeat others.
        """
        if not all(0 <= seed < 2**32 for seed in seeds):
            raise ValueError("seeds of noise lie between 0 and 2^32 - 1")
        rows = [
            torch.randn(self.state_shape, generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        return torch.stack(rows).to(self.device)

    def condition(self, seeds: Sequence[int]) -> Condition | None:
        """What follows from the seeds; None for an unconditional model."""
        return None

    def prepared(self, condition: Condition) -> Condition:
        """The same on this device, with all that ``raw`` would have to look up on the host."""
        return condition.to(self.device)

    def decode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], not clamped, (B, C', H', W'); differentiable."""
        return x

    @contextmanager
    def counting(self) -> Iterator[Count]:
        """Count evaluations and network rows inside the block; blocks may lie in one another."""
        count = Count()

        def seen(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            count.rows += len(args[0])

        handle, before = self.network.register_forward_pre_hook(seen), self._counts
        self._counts = (*before, count)
        try:
            yield count
        finally:
            handle.remove()
            self._counts = before

    def count_again(self, use: Count, times: int = 1) -> None:
        """Count work that was recorded and is now repeated (or, times -1, was never done)."""
        for count in self._counts:
            count.add(use, times)
