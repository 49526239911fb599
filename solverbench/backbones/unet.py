"""The small U-Net of the embedded backbones, and the EDM preconditioning around it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

SKIP = math.sqrt(0.5)  # keeps the variance of a residual sum


def sinusoid(value: Tensor, num_channels: int) -> Tensor:
    """Sinusoidal features of a scalar per row.

    Args:
        value: (B,), any scale of order one.
        num_channels: even number of features.

    Returns:
        (B, num_channels): cosines, then sines.

    Source: Vaswani et al. (2017), section 3.5; frequencies from 1 to 1e3.
    """
    powers = torch.linspace(0, 3, num_channels // 2, device=value.device, dtype=value.dtype)
    angle = value[:, None] * 10**powers
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions whose second normalisation is scaled and shifted by the embedding.

    Source: Dhariwal and Nichol (2021), adaptive group normalisation.
    """

    def __init__(self, num_in: int, num_out: int, num_embedding: int, attention: bool) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_in // 8, num_in)
        self.conv1 = nn.Conv2d(num_in, num_out, 3, padding=1)
        self.affine = nn.Linear(num_embedding, 2 * num_out)
        self.norm2 = nn.GroupNorm(num_out // 8, num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        self.skip = nn.Conv2d(num_in, num_out, 1) if num_in != num_out else nn.Identity()
        self.attention = SelfAttention(num_out) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map (B, num_in, H, W) and (B, num_embedding) to (B, num_out, H, W)."""
        y = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        y = functional.silu(torch.addcmul(shift, self.norm2(y), 1 + scale))
        out: Tensor = self.attention((self.skip(x) + self.conv2(y)) * SKIP)
        return out


class SelfAttention(nn.Module):
    """One-head self-attention over pixels, added to its input."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_channels // 8, num_channels)
        self.qkv = nn.Conv2d(num_channels, 3 * num_channels, 1)
        self.out = nn.Conv2d(num_channels, num_channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        y = functional.scaled_dot_product_attention(q, k, v)
        z: Tensor = SKIP * (x + self.out(y.transpose(1, 2).reshape(x.shape)))
        return z


class UNet(nn.Module):
    """Encoder, middle and decoder of residual blocks with skip connections.

    Args:
        resolution: side of the square images, pixels.
        num_channels: image channels.
        width: channels at full resolution.
        mult: channel multiple of each level; each further level halves the side.
        num_blocks: residual blocks a level in the encoder (one more in the decoder).
        attention: sides at which blocks carry self-attention.
        num_classes: labels 0 .. num_classes - 1 plus one null label; 0 for no labels.

    Source: Ho et al. (2020) with the blocks of Dhariwal and Nichol (2021).
    """

    def __init__(
        self,
        resolution: int,
        num_channels: int,
        width: int,
        mult: Sequence[int],
        num_blocks: int,
        attention: Sequence[int],
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.width, num_embedding = width, 4 * width
        self.embed = nn.Sequential(
            nn.Linear(width, num_embedding), nn.SiLU(), nn.Linear(num_embedding, num_embedding)
        )
        self.labels = nn.Embedding(num_classes + 1, num_embedding) if num_classes else None
        self.first = nn.Conv2d(num_channels, width, 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        sides = [resolution >> level for level in range(len(mult))]
        widths, now = [width], width
        for level, (m, side) in enumerate(zip(mult, sides, strict=True)):
            if level:
                self.encoder.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                widths.append(now)
            for _ in range(num_blocks):
                self.encoder.append(ResidualBlock(now, m * width, num_embedding, side in attention))
                now = m * width
                widths.append(now)
        self.middle = nn.ModuleList(
            [ResidualBlock(now, now, num_embedding, attend) for attend in (True, False)]
        )
        for level, (m, side) in reversed(list(enumerate(zip(mult, sides, strict=True)))):
            for _ in range(num_blocks + 1):
                num_in = now + widths.pop()
                block = ResidualBlock(num_in, m * width, num_embedding, side in attention)
                self.decoder.append(block)
                now = m * width
            if level:
                self.decoder.append(nn.Upsample(scale_factor=2, mode="nearest"))
        final = nn.Conv2d(now, num_channels, 3, padding=1)
        nn.init.zeros_(final.weight)
        self.last = nn.Sequential(nn.GroupNorm(now // 8, now), nn.SiLU(), final)

    def forward(self, x: Tensor, noise_level: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W), (B,) and int64 labels (B,) to (B, C, H, W)."""
        embedding = self.embed(sinusoid(noise_level, self.width))
        if self.labels is not None and labels is not None:
            embedding = embedding + self.labels(labels)
        embedding = functional.silu(embedding)
        x = self.first(x)
        skips = [x]
        for layer in self.encoder:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.decoder:
            if isinstance(layer, ResidualBlock):
                x = layer(torch.cat([x, skips.pop()], dim=1), embedding)
            else:
                x = layer(x)
        y: Tensor = self.last(x)
        return y


class EdmDenoiser(nn.Module):
    """A network in EDM preconditioning: estimates clean images at any noise level.

    Args:
        network: maps (B, C, H, W), noise feature (B,) and labels to (B, C, H, W).
        sigma_data: standard deviation of the data.

    Source: Karras et al. (2022), table 1, EDM column.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.network, self.sigma_data = network, sigma_data

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Denoise x = x0 + sigma n.

        Args:
            x: (B, C, H, W), float32.
            sigma: EDM noise level, (B,) or (), positive.
            labels: class labels, int64 (B,), or None.

        Returns:
            Estimate of x0, (B, C, H, W), dtype of x.
        """
        sigma = sigma.to(x.dtype).reshape(-1, 1, 1, 1)
        total = sigma**2 + self.sigma_data**2
        noise_level = sigma.log().flatten().expand(x.shape[0]) / 4
        own = next(self.network.parameters()).dtype
        scaled = (x / total.sqrt()).to(own)
        output = self.network(scaled, noise_level.to(own), labels).to(x.dtype)
        skip, scale = self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt()
        denoised: Tensor = skip * x + scale * output
        return denoised
