"""What latent diffusion models share: a network of noise over 1000 steps, with guidance."""

from abc import abstractmethod
from typing import Any, Literal, TypedDict, cast

import torch
from torch import Tensor, nn

from solverbench.backbones.base import Backbone, Condition
from solverbench.errors import SolverBenchError
from solverbench.schedule import NoiseSchedule, Output, float64

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WITHOUT_EXTRA = (
    "{name} needs the packages diffusers and transformers: pip install 'solverbench[sd]'"
)


class NetworkOptions(TypedDict, total=False):
    """How a network is run; only ``dtype`` changes numbers by more than rounding.

    Attributes:
        dtype: of the network, float32 by default; state, times and guidance keep theirs.
        gradient_checkpointing: recompute each block in the backward pass; off by default.
        channels_last: memory format; off by default.
        attention: ``sdpa`` (torch's fused kernels, the default) or ``eager``.
        guidance_calls: ``batched`` (the default), or ``sequential`` for half of the peak memory.
        decode_batch: images decoded at a time, 8 by default.
        device: where it lives, ``cpu`` by default.
    """

    dtype: Literal["float32", "bfloat16", "float16"]
    gradient_checkpointing: bool
    channels_last: bool
    attention: Literal["sdpa", "eager"]
    guidance_calls: Literal["batched", "sequential"]
    decode_batch: int
    device: str


class LatentBackbone(Backbone):
    """A diffusers UNet that predicts noise, and a decoder; subclasses load both.

    One evaluation is one call whatever guidance does; the rows count both halves.

    Attributes:
        guidance: scale s in eps_null + s (eps_cond - eps_null); 1 means one half only.
        decoder: diffusers autoencoder.

    Source: Ho and Salimans (2022), Classifier-free diffusion guidance; backbones.md section 3.
    """

    output: Output = "eps"
    quantisation = "adm"
    guidance: float = 1.0
    decoder: nn.Module

    def set_up(
        self,
        network: nn.Module,
        decoder: nn.Module,
        schedule: NoiseSchedule,
        options: NetworkOptions,
    ) -> None:
        """Freeze both parts and put them where and how the options say.

        Args:
            network: diffusers UNet; called as ``network(x, step, ...)``.
            decoder: diffusers autoencoder, kept in float32.
            schedule: of 1000 steps.
            options: see ``NetworkOptions``.

        Raises:
            ValueError: for a ``decode_batch`` below 1.
        """
        self.options = options
        self.dtype = DTYPES[options.get("dtype", "float32")]
        self.decode_batch = options.get("decode_batch", 8)
        if self.decode_batch < 1:
            raise ValueError(f"decode_batch is {self.decode_batch}; it must be at least 1")
        self.device = torch.device(options.get("device", "cpu"))
        form = torch.channels_last if options.get("channels_last") else torch.contiguous_format
        unet: Any = network
        place: Any = nn.Module.to  # that of diffusers does the same and warns
        place(unet, device=self.device, dtype=self.dtype, memory_format=form)
        if options.get("attention") == "eager":
            _attend_eagerly(network)
        if options.get("gradient_checkpointing"):
            unet.enable_gradient_checkpointing()
        self.network = network.eval().requires_grad_(False)
        place(decoder, device=self.device, dtype=torch.float32, memory_format=form)
        self.decoder = decoder.eval().requires_grad_(False)
        self.schedule = schedule
        self.t_floor = schedule.t_min

    @abstractmethod
    def context(self, labels: Tensor) -> Tensor:
        """What the network attends to, a row a label (B,): (B, tokens, width)."""

    @abstractmethod
    def null_context(self, num: int) -> Tensor | None:
        """The same for no condition, (num, tokens, width); None for a model without conditions."""

    def prepared(self, condition: Condition) -> Condition:
        """With what the network attends to."""
        return Condition(condition.labels.to(self.device), self.context(condition.labels))

    def raw(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """The network's noise for x (B, C, H, W) at time t (), guided."""
        step = (1000 * float64(t) - 1).to(self.device, torch.float32).expand(len(x))
        null = self.null_context(len(x))
        if condition is None:
            return self._half(x, step, null)
        known = condition.context
        cond = self.context(condition.labels) if known is None else known
        if self.guidance == 1:
            return self._half(x, step, cond)
        assert null is not None  # who knows conditions knows what none of them is
        if self.options.get("guidance_calls") == "sequential":
            without, with_it = self._half(x, step, null), self._half(x, step, cond)
        else:
            both = torch.cat([x, x]), torch.cat([step, step]), torch.cat([null, cond])
            without, with_it = self._half(*both).chunk(2)
        return without + self.guidance * (with_it - without)

    def _half(self, x: Tensor, step: Tensor, context: Tensor | None) -> Tensor:
        """One pass; steps stay in float32, in which the network forms its own embedding."""
        y = x.to(self.dtype)
        if context is None:
            return cast(Tensor, self.network(y, step).sample).to(x.dtype)
        return cast(Tensor, self.network(y, step, context.to(self.dtype)).sample).to(x.dtype)

    def decode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], not clamped, (B, 3, H', W'), dtype of x; a few at a time."""
        parts = torch.split(x.float(), self.decode_batch)
        return torch.cat([self.decode_part(part) for part in parts]).to(x.dtype)

    @abstractmethod
    def decode_part(self, x: Tensor) -> Tensor:
        """Images of a few latents (B, C, H, W), float32."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, C, H, W) of images (B, 3, H', W') in [-1, 1], float32."""


def _attend_eagerly(network: nn.Module) -> None:
    """Plain attention in every layer; not all UNets of diffusers have a method for it."""
    from diffusers.models.attention_processor import AttnProcessor

    for module in network.modules():
        if hasattr(module, "set_processor"):
            cast(Any, module).set_processor(AttnProcessor())


def check_guidance(value: float) -> float:
    """A guidance scale, checked.

    Raises:
        ValueError: for one that is negative or not finite.
    """
    if not 0 <= value < float("inf"):
        raise ValueError(f"guidance is {value}; it must be at least 0 and finite")
    return value


def diffusers_of(name: str) -> Any:
    """The module ``diffusers``.

    Args:
        name: backbone that needs it, for the message.

    Raises:
        SolverBenchError: where it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise SolverBenchError(WITHOUT_EXTRA.format(name=name)) from error
    return diffusers
