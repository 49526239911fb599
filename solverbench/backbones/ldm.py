"""Latent diffusion models as backbones, unconditional and with classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn

from solverbench.backbones.base import Condition
from solverbench.backbones.latent import LatentBackbone, NetworkOptions, check_guidance
from solverbench.backbones.ldm_files import load_ldm
from solverbench.errors import SolverBenchError
from solverbench.schedule import VPDiscrete

GUIDANCE = 2.0  # of class-conditional models, by default
ROWS = 4096  # latent vectors compared with all codes at a time


class LDM(LatentBackbone):
    """Any latent diffusion model of noise over 1000 steps, unconditional or with classes.

    Args:
        weights: CompVis ``.ckpt``, diffusers folder or converted ``.safetensors``; no default.
        config: CompVis YAML of a ``.ckpt`` that is not a published one.
        guidance: scale of classifier-free guidance, 2 by default; only with classes.
        t_min: where students stop.
        **options: see ``NetworkOptions``.

    Source: Rombach et al. (2022); gs-gas.md sections 2.2 and 10.
    """

    name = "ldm"

    def __init__(
        self,
        *,
        weights: str | None = None,
        config: str | None = None,
        guidance: float | None = None,
        t_min: float = 1e-3,
        **options: Unpack[NetworkOptions],
    ) -> None:
        if weights is None:
            raise SolverBenchError(
                f"{self.name} needs weights=PATH, a .ckpt or .safetensors file or diffusers folder"
            )
        if not 0 < t_min < 1:
            raise ValueError(f"t_min is {t_min}; it must lie between 0 and 1")
        if guidance is not None:
            check_guidance(guidance)
        loaded = load_ldm(Path(weights), None if config is None else Path(config))
        self.facts = loaded.facts
        layout = self.facts.layout
        self.num_classes = self.facts.num_classes
        if guidance is not None and not self.num_classes:
            raise ValueError("the model has no classes to be guided by; leave guidance away")
        default = GUIDANCE if self.num_classes else 1.0
        self.guidance = default if guidance is None else guidance
        schedule = VPDiscrete(layout.beta_first, layout.beta_last, t_min)
        self.set_up(loaded.unet, loaded.first_stage, schedule, options)
        self.classes = None if loaded.classes is None else loaded.classes.to(self.device)
        self.scale, self.weights_sha256 = layout.scale, self.facts.file_sha256
        side = layout.unet["sample_size"]
        self.state_shape = (layout.unet["in_channels"], side, side)

    def condition(self, seeds: Sequence[int]) -> Condition | None:
        """Class = seed mod number of classes; the null class is none of them."""
        if not self.num_classes:
            return None
        return Condition(torch.tensor([s % self.num_classes for s in seeds], device=self.device))

    def context(self, labels: Tensor) -> Tensor:
        """Embeddings (B, 1, width) of classes (B,)."""
        rows: Tensor = cast(nn.Embedding, self.classes)(labels.to(self.device))
        return rows[:, None]

    def null_context(self, num: int) -> Tensor | None:
        """The last row of the embedding, (num, 1, width); None where there are no classes."""
        if self.classes is None:
            return None
        return self.classes.weight[-1].expand(num, 1, -1)

    def decode_part(self, x: Tensor) -> Tensor:
        """Images of latents (B, C, H, W), which a VQ decoder moves to the nearest codes first.

        The gradient passes that step as if it were none (straight through).
        """
        z, decoder = x / self.scale, cast(Any, self.decoder)
        if not hasattr(decoder, "quantize"):
            return cast(Tensor, decoder.decode(z).sample)
        codes = self.quantise(z)[0] + (z - z.detach())  # the codes exactly; slope 1 in z
        return cast(Tensor, decoder.decode(codes, force_not_quantize=True).sample)

    @torch.no_grad()
    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest codes of a VQ model.

        Args:
            z: latents over their scale, (B, C, H, W).

        Returns:
            Codes (B, C, H, W), and their numbers (B, H, W).
        """
        table = cast(Any, self.decoder).quantize.embedding.weight
        rows = z.movedim(1, -1).reshape(-1, z.shape[1])
        exact = "donot_use_mm_for_euclid_dist"  # no cancellation between near codes
        index = torch.cat(
            [torch.cdist(r, table, compute_mode=exact).argmin(1) for r in torch.split(rows, ROWS)]
        )
        index = index.reshape(len(z), *z.shape[2:])
        return table[index].movedim(-1, 1).contiguous(), index

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images in [-1, 1]: of a VQ model before the codes, of a KL one the means."""
        parts = torch.split(images.float(), self.decode_batch)
        return torch.cat([self._encode_part(part) for part in parts])

    def _encode_part(self, images: Tensor) -> Tensor:
        made = cast(Any, self.decoder).encode(images)
        latents = made.latents if hasattr(made, "latents") else made.latent_dist.mean
        return self.scale * cast(Tensor, latents)
