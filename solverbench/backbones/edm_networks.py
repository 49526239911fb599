"""The networks of EDM: DDPM++ and NCSN++ (``SongUNet``), ADM (``DhariwalUNet``); inference only.

Names of submodules are those of the published weights. All tensors are uninitialised until weights
are loaded. Dropout is left out: these networks are never trained here.

Source: Karras et al. (2022), table 7; Song et al. (2021); Dhariwal & Nichol (2021).
"""

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import silu

from solverbench.backbones.edm_layers import (
    Conv2d,
    Fourier,
    GroupNorm,
    Linear,
    Positional,
    Style,
    UNetBlock,
)


class UNetKeywords(BaseModel):
    """Constructor keywords that both networks have, within bounds that any real one keeps."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    img_resolution: int = Field(ge=4, le=1024)
    in_channels: int = Field(ge=1, le=64)
    out_channels: int = Field(ge=1, le=128)
    label_dim: int = Field(0, ge=0, le=100_000)
    augment_dim: int = Field(0, ge=0, le=1000)
    model_channels: int = Field(ge=1, le=4096)
    channel_mult: list[int] = Field(min_length=1, max_length=8)
    channel_mult_emb: int = Field(4, ge=1, le=64)
    num_blocks: int = Field(ge=1, le=32)
    attn_resolutions: list[int] = Field(max_length=64)
    dropout: float = Field(0.1, ge=0, lt=1)
    label_dropout: float = Field(0.0, ge=0, lt=1)

    def check(self) -> None:
        """Sizes must fit.

        Raises:
            ValueError: where they do not.
        """
        if not all(1 <= mult <= 64 for mult in self.channel_mult):
            raise ValueError("channel_mult lies between 1 and 64")
        if self.img_resolution % (1 << (len(self.channel_mult) - 1)):
            raise ValueError("img_resolution cannot be halved once a level")

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Resolution and width of each level, the finest first."""
        widths = [self.model_channels * mult for mult in self.channel_mult]
        return [(self.img_resolution >> level, width) for level, width in enumerate(widths)]

    @property
    def emb_channels(self) -> int:
        """Width of the embedding."""
        return self.model_channels * self.channel_mult_emb


class SongKeywords(UNetKeywords):
    """Keywords of ``SongUNet``; the defaults are those of DDPM++."""

    model_channels: int = Field(128, ge=1, le=4096)
    channel_mult: list[int] = Field([1, 2, 2, 2], min_length=1, max_length=8)
    num_blocks: int = Field(4, ge=1, le=32)
    attn_resolutions: list[int] = Field([16], max_length=64)
    embedding_type: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: int = Field(1, ge=1, le=64)
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: list[int | float] = Field([1, 1], min_length=1, max_length=8)


class DhariwalKeywords(UNetKeywords):
    """Keywords of ``DhariwalUNet``; the defaults are those of ADM."""

    model_channels: int = Field(192, ge=1, le=4096)
    channel_mult: list[int] = Field([1, 2, 3, 4], min_length=1, max_length=8)
    num_blocks: int = Field(3, ge=1, le=32)
    attn_resolutions: list[int] = Field([32, 16, 8], max_length=64)


class SongUNet(nn.Module):
    """DDPM++ and NCSN++.

    Args:
        given: its keywords.
    """

    def __init__(self, given: SongKeywords) -> None:
        super().__init__()
        given.check()
        self.given = given
        noise = given.model_channels * given.channel_mult_noise
        if noise % 2 or noise < 4:
            raise ValueError("the noise embedding has an even number of channels, at least 4")
        emb, given_emb = given.emb_channels, given.embedding_type
        self.map_noise = Fourier(noise) if given_emb == "fourier" else Positional(noise, last=True)
        self.map_label = Linear(given.label_dim, noise) if given.label_dim else None
        self.map_augment = (
            Linear(given.augment_dim, noise, bias=False) if given.augment_dim else None
        )
        self.map_layer0, self.map_layer1 = Linear(noise, emb), Linear(emb, emb)
        style = Style(
            emb=emb,
            heads=1,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            resample_proj=True,
            adaptive=False,
            taps=given.resample_filter,
        )
        self.enc = nn.ModuleDict(self._encoder(style))
        self.dec = nn.ModuleDict(self._decoder(style))

    def _encoder(self, style: Style) -> dict[str, nn.Module]:
        g, made = self.given, dict[str, nn.Module]()
        self.widths, width, aux = list[int](), g.model_channels, g.in_channels
        for level, (size, wide) in enumerate(g.levels):
            name = f"{size}x{size}"
            if level == 0:
                made[f"{name}_conv"] = Conv2d(g.in_channels, width, 3)
            else:
                made[f"{name}_down"] = UNetBlock(width, width, style, "down")
                if g.encoder_type == "skip":
                    made[f"{name}_aux_down"] = Conv2d(aux, aux, 0, "down", style.taps)
                    made[f"{name}_aux_skip"] = Conv2d(aux, width, 1)
                if g.encoder_type == "residual":
                    made[f"{name}_aux_residual"] = Conv2d(aux, width, 3, "down", style.taps, True)
                    aux = width
            self.widths.append(width)
            for i in range(g.num_blocks):
                attends = size in g.attn_resolutions
                made[f"{name}_block{i}"] = UNetBlock(width, wide, style, attention=attends)
                width = wide
                self.widths.append(width)
        return made

    def _decoder(self, style: Style) -> dict[str, nn.Module]:
        g, made, widths = self.given, dict[str, nn.Module](), list(self.widths)
        width, lowest = widths[-1], len(g.levels) - 1
        for level, (size, wide) in reversed(list(enumerate(g.levels))):
            name = f"{size}x{size}"
            if level == lowest:
                made[f"{name}_in0"] = UNetBlock(width, width, style, attention=True)
                made[f"{name}_in1"] = UNetBlock(width, width, style)
            else:
                made[f"{name}_up"] = UNetBlock(width, width, style, "up")
            for i in range(g.num_blocks + 1):
                attends = i == g.num_blocks and size in g.attn_resolutions
                inputs = width + widths.pop()
                made[f"{name}_block{i}"] = UNetBlock(inputs, wide, style, attention=attends)
                width = wide
            if g.decoder_type == "skip" and level < lowest:
                made[f"{name}_aux_up"] = Conv2d(g.out_channels, g.out_channels, 0, "up", style.taps)
            if g.decoder_type == "skip" or level == 0:
                made[f"{name}_aux_norm"] = GroupNorm(width, 1e-6)
                made[f"{name}_aux_conv"] = Conv2d(width, g.out_channels, 3)
        return made

    def embed(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """Embedding (B or 1, E) of noise labels, class labels and augmentation labels."""
        cosines, sines = self.map_noise(noise).chunk(2, dim=1)
        emb = torch.cat([sines, cosines], dim=1)
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels * math.sqrt(self.given.label_dim))
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        return silu(self.map_layer1(silu(self.map_layer0(emb))))

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Output (B, C', H, W) for x (B, C, H, W), noise labels (B or 1,)."""
        emb = self.embed(noise, labels, augment)
        skips, aux = list[Tensor](), x
        for name, block in self.enc.items():
            if "aux_down" in name:
                aux = block(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + block(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + block(aux)) / math.sqrt(2)
            else:
                x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
                skips.append(x)
        return self._decode(x, emb, skips)

    def _decode(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        total, normed = torch.zeros((), device=x.device), x
        for name, block in self.dec.items():
            if "aux_up" in name:
                total = block(total)
            elif "aux_norm" in name:
                normed = silu(block(x))
            elif "aux_conv" in name:
                total = total + block(normed)
            else:
                x = torch.cat([x, skips.pop()], dim=1) if "_block" in name else x
                x = block(x, emb)
        return total


class DhariwalUNet(nn.Module):
    """ADM.

    Args:
        given: its keywords.
    """

    def __init__(self, given: DhariwalKeywords) -> None:
        super().__init__()
        given.check()
        self.given = given
        noise, emb = given.model_channels, given.emb_channels
        if noise % 2:
            raise ValueError("the noise embedding has an even number of channels")
        self.map_noise = Positional(noise, last=False)
        self.map_augment = (
            Linear(given.augment_dim, noise, bias=False) if given.augment_dim else None
        )
        self.map_layer0, self.map_layer1 = Linear(noise, emb), Linear(emb, emb)
        self.map_label = Linear(given.label_dim, emb, bias=False) if given.label_dim else None
        style = Style(
            emb=emb,
            heads=0,
            skip_scale=1.0,
            eps=1e-5,
            resample_proj=False,
            adaptive=True,
            taps=[1, 1],
        )
        self.enc = nn.ModuleDict(self._encoder(style))
        self.dec = nn.ModuleDict(self._decoder(style))
        width = given.levels[0][1]
        self.out_norm = GroupNorm(width, style.eps)
        self.out_conv = Conv2d(width, given.out_channels, 3)

    def _encoder(self, style: Style) -> dict[str, nn.Module]:
        g, made = self.given, dict[str, nn.Module]()
        self.widths, width = list[int](), g.levels[0][1]
        for level, (size, wide) in enumerate(g.levels):
            name = f"{size}x{size}"
            if level == 0:
                made[f"{name}_conv"] = Conv2d(g.in_channels, width, 3)
            else:
                made[f"{name}_down"] = UNetBlock(width, width, style, "down")
            self.widths.append(width)
            for i in range(g.num_blocks):
                attends = size in g.attn_resolutions
                made[f"{name}_block{i}"] = UNetBlock(width, wide, style, attention=attends)
                width = wide
                self.widths.append(width)
        return made

    def _decoder(self, style: Style) -> dict[str, nn.Module]:
        g, made, widths = self.given, dict[str, nn.Module](), list(self.widths)
        width = widths[-1]
        for level, (size, wide) in reversed(list(enumerate(g.levels))):
            name = f"{size}x{size}"
            if level == len(g.levels) - 1:
                made[f"{name}_in0"] = UNetBlock(width, width, style, attention=True)
                made[f"{name}_in1"] = UNetBlock(width, width, style)
            else:
                made[f"{name}_up"] = UNetBlock(width, width, style, "up")
            for i in range(g.num_blocks + 1):
                attends, inputs = size in g.attn_resolutions, width + widths.pop()
                made[f"{name}_block{i}"] = UNetBlock(inputs, wide, style, attention=attends)
                width = wide
        return made

    def embed(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """Embedding (B or 1, E) of noise labels, class labels and augmentation labels."""
        emb = self.map_noise(noise)
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(silu(self.map_layer0(emb)))
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels)
        return silu(emb)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Output (B, C', H, W) for x (B, C, H, W), noise labels (B or 1,)."""
        emb, skips = self.embed(noise, labels, augment), list[Tensor]()
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            x = torch.cat([x, skips.pop()], dim=1) if "_block" in name else x
            x = block(x, emb)
        done: Tensor = self.out_conv(silu(self.out_norm(x)))
        return done
