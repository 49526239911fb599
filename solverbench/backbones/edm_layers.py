"""Layers of the EDM networks; inference only, tensors uninitialised until weights are loaded.

Source: Karras et al. (2022), appendix F.2.
"""

import math
from typing import Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import silu


class Linear(nn.Module):
    """Linear map."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Of the last axis of x."""
        return functional.linear(x, self.weight, self.bias)


class GroupNorm(nn.Module):
    """Normalisation in groups of at least four channels."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = min(32, channels // 4), eps
        if not self.groups or channels % self.groups:
            raise ValueError(f"{channels} channels do not fall into {self.groups} groups")
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Of x (B, C, H, W)."""
        return functional.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class Conv2d(nn.Module):
    """Convolution, with a change of size before or after it; ``kernel`` 0 changes size only.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        kernel: odd size, or 0.
        resample: doubles (``up``) or halves (``down``) the image.
        taps: filter of the change of size, along one axis.
        fused: filter and convolution share their padding.
    """

    resample_filter: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        resample: Literal["", "up", "down"] = "",
        taps: list[int | float] | None = None,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.fused = resample, fused
        self.weight = self.bias = None
        if kernel:
            self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
            self.bias = nn.Parameter(torch.empty(outputs))
        row = torch.tensor(taps or [1, 1], dtype=torch.float32)
        self.pad, self.filter_pad = kernel // 2, (len(row) - 1) // 2
        if resample:
            square = torch.outer(row, row) / row.sum().square()
            self.register_buffer("resample_filter", square[None, None])

    def _resized(self, x: Tensor, padding: int) -> Tensor:
        kernel = self.resample_filter.expand(x.shape[1], 1, -1, -1)
        if self.resample == "up":
            return functional.conv_transpose2d(
                x, 4 * kernel, stride=2, padding=padding, groups=x.shape[1]
            )
        return functional.conv2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """Of x (B, C, H, W); (B, C', H', W')."""
        pad, extra = self.pad, self.filter_pad
        if self.weight is not None and self.fused and self.resample == "down":
            x = functional.conv2d(x, self.weight, self.bias, padding=pad + extra)
            return self._resized(x, 0)  # the filter sums to one, so the bias may come first
        if self.weight is not None and self.fused and self.resample == "up":
            x = self._resized(x, max(extra - pad, 0))
            return functional.conv2d(x, self.weight, self.bias, padding=max(pad - extra, 0))
        if self.resample:
            x = self._resized(x, extra)
        if self.weight is None:
            return x
        return functional.conv2d(x, self.weight, self.bias, padding=pad)


class Style(BaseModel):
    """What the blocks of one network have in common.

    Attributes:
        emb: width of the embedding.
        heads: attention heads; 0 for one every 64 channels.
        skip_scale: factor of every residual sum.
        eps: of the normalisation.
        resample_proj: whether resized shortcuts get a convolution.
        adaptive: whether the embedding scales too.
        taps: filter of changes of size.
    """

    emb: int
    heads: int
    skip_scale: float
    eps: float
    resample_proj: bool
    adaptive: bool
    taps: list[int | float]


class UNetBlock(nn.Module):
    """Residual block with the embedding, an optional change of size and optional attention.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        style: of the network.
        resample: ``up``, ``down`` or none.
        attention: whether it has attention.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        style: Style,
        resample: Literal["", "up", "down"] = "",
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.style = inputs, outputs, style
        self.heads = (style.heads or outputs // 64) if attention else 0
        self.norm0 = GroupNorm(inputs, style.eps)
        self.conv0 = Conv2d(inputs, outputs, 3, resample, style.taps)
        self.affine = Linear(style.emb, outputs * (2 if style.adaptive else 1))
        self.norm1 = GroupNorm(outputs, style.eps)
        self.conv1 = Conv2d(outputs, outputs, 3)
        self.skip: Conv2d | None = None
        if outputs != inputs or resample:
            kernel = 1 if style.resample_proj or outputs != inputs else 0
            self.skip = Conv2d(inputs, outputs, kernel, resample, style.taps)
        if self.heads:
            self.norm2 = GroupNorm(outputs, style.eps)
            self.qkv = Conv2d(outputs, 3 * outputs, 1)
            self.proj = Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Features x (B, C, H, W) with embedding emb (B or 1, E)."""
        h = self.conv0(silu(self.norm0(x)))
        p = self.affine(emb)[:, :, None, None]
        if self.style.adaptive:
            scale, shift = p.chunk(2, dim=1)
            h = silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = silu(self.norm1(h + p))
        h = (self.conv1(h) + (x if self.skip is None else self.skip(x))) * self.style.skip_scale
        done: Tensor = (self._attend(h) + h) * self.style.skip_scale if self.heads else h
        return done

    def _attend(self, x: Tensor) -> Tensor:
        """Attention between pixels; q, k and v alternate along the channels of ``qkv``."""
        rows, channels, height, width = x.shape
        mixed = self.qkv(self.norm2(x))
        mixed = mixed.reshape(rows, self.heads, channels // self.heads, 3, height * width)
        q, k, v = (part.transpose(2, 3) for part in mixed.unbind(3))
        a = functional.scaled_dot_product_attention(q, k, v)
        done: Tensor = self.proj(a.transpose(2, 3).reshape(x.shape))
        return done


class Fourier(nn.Module):
    """Random Fourier features of the noise label."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels // 2))

    def forward(self, noise: Tensor) -> Tensor:
        """Features (B, C) of noise labels (B,): cosines, then sines."""
        a = torch.outer(noise, 2 * math.pi * self.freqs)
        return torch.cat([a.cos(), a.sin()], dim=1)


class Positional(nn.Module):
    """Sinusoids of the noise label.

    Args:
        channels: how many, even.
        last: whether the slowest has frequency 1e-4 exactly.
    """

    def __init__(self, channels: int, last: bool) -> None:
        super().__init__()
        self.num, self.last = channels // 2, last

    def forward(self, noise: Tensor) -> Tensor:
        """Features (B, C) of noise labels (B,): cosines, then sines."""
        index = torch.arange(self.num, dtype=torch.float32, device=noise.device)
        freqs = (1 / 10000) ** (index / (self.num - (1 if self.last else 0)))
        a = torch.outer(noise, freqs.to(noise))
        return torch.cat([a.cos(), a.sin()], dim=1)
