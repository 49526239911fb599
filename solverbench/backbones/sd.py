"""Stable Diffusion 1.x from a local folder of diffusers, with prompts from a text file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from solverbench.backbones.base import Condition
from solverbench.backbones.latent import LatentBackbone, NetworkOptions, check_guidance
from solverbench.backbones.prompts import Embeddings, read_prompts
from solverbench.backbones.sd_files import identity, open_sd
from solverbench.backbones.sd_networks import load_sd
from solverbench.errors import SolverBenchError


class StableDiffusion(LatentBackbone):
    """Any Stable Diffusion of the 1.x architecture, at the size it was trained for.

    A sample's prompt is line (seed mod number of lines) of the prompt file, ``Condition.labels``
    holds that line's index, on the host. Without a prompt file every sample has the empty prompt;
    both halves of guidance would be equal then, so ``condition`` gives None and one half is run.
    Embeddings are cached in host memory, 1.6 GB at most (see ``Embeddings``). ``weights_sha256``
    covers the prompts too: samples of two lists never share a folder.

    Args:
        weights: local folder with ``unet``, ``vae``, ``text_encoder``, ``tokenizer`` and
            ``scheduler``, weights as safetensors; nothing is fetched, nothing in it is run.
        prompts: UTF-8 text file with a prompt a line; none by default.
        guidance: scale of classifier-free guidance against the empty prompt.
        t_min: where students stop.
        **options: see ``NetworkOptions``; text encoder and autoencoder stay in float32.

    Source: Rombach et al. (2022); gs-gas.md sections 2.2 and 10, backbones.md section 4.
    """

    name = "sd"

    def __init__(
        self,
        *,
        weights: str | None = None,
        prompts: str | None = None,
        guidance: float = 7.5,
        t_min: float = 1e-3,
        **options: Unpack[NetworkOptions],
    ) -> None:
        if weights is None:
            raise SolverBenchError(f"{self.name} needs weights=FOLDER, a folder of diffusers")
        self.guidance = check_guidance(guidance)
        file = Path(prompts) if prompts is not None else None
        self.prompt_lines = lines = read_prompts(file) if file else []
        folder = open_sd(Path(weights))
        schedule = folder.schedule(t_min)
        parts = load_sd(folder, self.name)
        self.weights_sha256 = identity(folder, file)
        self.state_shape, self.output = folder.state_shape, folder.output
        self.scaling_factor = folder.scaling_factor
        self.set_up(parts.unet, parts.vae, schedule, options)
        self.encoder = parts.text_encoder.to(self.device)
        self.prompts = Embeddings(self.encoder, parts.tokenizer, lines, folder.num_tokens)
        self.null = self.prompts.embed([""])

    def condition(self, seeds: Sequence[int]) -> Condition | None:
        """Indices of the prompts of seeds, (B,); None without a prompt file."""
        num = len(self.prompts.places)
        return Condition(torch.tensor([seed % num for seed in seeds])) if num else None

    def context(self, labels: Tensor) -> Tensor:
        """Embeddings of the prompts with these indices (B,): (B, tokens, width)."""
        return self.prompts.of(labels.tolist()).to(self.device)

    def null_context(self, num: int) -> Tensor:
        """Embedding of the empty prompt, (num, tokens, width)."""
        return self.null.expand(num, -1, -1)

    def _half(self, x: Tensor, step: Tensor, context: Tensor | None) -> Tensor:
        """One pass; without a condition it is that of the empty prompt."""
        return super()._half(x, step, self.null_context(len(x)) if context is None else context)

    def decode_part(self, x: Tensor) -> Tensor:
        """Images (B, 3, H', W') of a few latents (B, C, H, W), float32."""
        decoder: Any = self.decoder
        images: Tensor = decoder.decode(x / self.scaling_factor).sample
        return images

    def encode(self, images: Tensor) -> Tensor:
        """Mean latents (B, C, H, W) of images (B, 3, H', W') in [-1, 1], float32."""
        decoder: Any = self.decoder
        latents: Tensor = decoder.encode(images.float().to(self.device)).latent_dist.mean
        return self.scaling_factor * latents
