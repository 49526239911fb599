"""Layers of the R3GAN discriminator; names of their tensors are those of published weights; a leaf.

Source: R3GAN (arXiv 2501.05441), appendix; gs-gas.md section 8.2.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.2  # of the leaky rectifier
EXPANSION = 2  # inner width of a block over its outer one


class Weight(nn.Module):
    """A weight without bias, drawn from N(0, gain^2 / fan_in)."""

    def __init__(self, *shape: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.zeros(shape)), gain

    def draw(self, rng: torch.Generator) -> None:
        """Initial values; a gain of 0 draws nothing."""
        std = self.gain / math.sqrt(math.prod(self.weight.shape[1:]))
        drawn = torch.randn(self.weight.shape, generator=rng) if std else torch.zeros(())
        self.weight.data.copy_(std * drawn)


class Convolution(nn.Module):
    """A convolution that keeps the size."""

    def __init__(
        self, inputs: int, outputs: int, size: int = 1, groups: int = 1, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.Layer = Weight(outputs, inputs // groups, size, size, gain=gain)
        self.padding, self.groups = size // 2, groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        return functional.conv2d(x, self.Layer.weight, padding=self.padding, groups=self.groups)


class Activation(nn.Module):
    """Bias and leaky rectifier, without gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.Bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same shape."""
        return functional.leaky_relu(x + self.Bias[:, None, None], SLOPE)


class Block(nn.Module):
    """Residual block; starts as the identity, because its last convolution starts at zero."""

    def __init__(self, width: int, groups: int, num_blocks: int) -> None:
        super().__init__()
        inner, gain = EXPANSION * width, math.sqrt(2 / (1 + SLOPE**2)) * num_blocks**-0.25
        self.LinearLayer1 = Convolution(width, inner, gain=gain)
        self.NonLinearity1 = Activation(inner)
        self.LinearLayer2 = Convolution(inner, inner, size=3, groups=groups, gain=gain)
        self.NonLinearity2 = Activation(inner)
        self.LinearLayer3 = Convolution(inner, width, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same shape."""
        y = self.NonLinearity1(self.LinearLayer1(x))
        y = self.NonLinearity2(self.LinearLayer2(y))
        return x + self.LinearLayer3(y)  # type: ignore[no-any-return]


class Blur(nn.Module):
    """Depthwise binomial blur that halves the size."""

    Kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("Kernel", torch.outer(row, row) / 64)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H / 2, W / 2)."""
        kernel = self.Kernel.to(x).expand(x.shape[1], 1, 4, 4)
        return functional.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


class Downsample(nn.Module):
    """Between two stages: blur, then a change of width where there is one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.Resampler = Blur()
        self.LinearLayer = Convolution(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / 2, W / 2)."""
        return self.LinearLayer(self.Resampler(x))  # type: ignore[no-any-return]


class Head(nn.Module):
    """After the last stage: a 4 x 4 map to one number a channel, then to the outputs."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.Basis = Weight(width, 1, 4, 4)
        self.LinearLayer = Weight(num_outputs, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, 4, 4) to (B, num_outputs)."""
        x = functional.conv2d(x, self.Basis.weight, groups=x.shape[1]).flatten(1)
        return functional.linear(x, self.LinearLayer.weight)


class Stage(nn.Module):
    """Residual blocks and a transition."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.Layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """The input of the first layer to the output of the last."""
        for layer in self.Layers:
            x = layer(x)
        return x
