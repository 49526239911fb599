"""CompVis configs of latent diffusion models; nothing they name is imported.

Source: backbones.md sections 3.3 and 3.4.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from solverbench.backbones.ldm_facts import LARGEST_SCALE, MOST_ROWS, checked_layout, first_fault
from solverbench.backbones.ldm_layout import Layout, stage_keywords, unet_keywords
from solverbench.backbones.settings import MOST_LAYERS, WIDEST, readable
from solverbench.errors import SolverBenchError

LARGEST = 1 << 20  # bytes of a config
NO_YAML = (  # what safe loading raises; its scalars with a tag of their own raise the last four
    *(yaml.YAMLError, RecursionError, ValueError),
    *(LookupError, AttributeError, TypeError, ArithmeticError),
)


def _starts_with_one(mult: tuple[int, ...]) -> tuple[int, ...]:
    if mult[0] != 1:
        raise ValueError(f"starts with {mult[0]}, where diffusers' modules know 1 only")
    return mult


Count = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
Width = Annotated[int, Field(ge=1, le=WIDEST)]
Mult = Annotated[
    tuple[Count, ...], Field(min_length=1, max_length=8), AfterValidator(_starts_with_one)
]


class _Strict(BaseModel):
    """A section in which every keyword changes the network."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Loose(BaseModel):
    """A section with much that matters in training only."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class UNetParams(_Strict):
    """CompVis' ``UNetModel``; what is ``Literal`` has one supported value."""

    image_size: Width
    in_channels: Width
    out_channels: Width
    model_channels: Width
    attention_resolutions: tuple[Width, ...]
    num_res_blocks: Count
    channel_mult: Mult
    num_heads: int = -1
    num_head_channels: int = -1
    use_spatial_transformer: bool = False
    transformer_depth: Count = 1
    context_dim: Width | None = None
    dropout: float = 0.0
    use_checkpoint: bool = False
    use_fp16: bool = False
    legacy: bool = True
    conv_resample: Literal[True] = True
    dims: Literal[2] = 2
    num_classes: None = None
    resblock_updown: Literal[False] = False
    use_new_attention_order: Literal[False] = False
    use_scale_shift_norm: Literal[False] = False

    def keywords(self) -> dict[str, Any]:
        """Class and keywords of the diffusers UNet.

        Raises:
            ValueError: for heads that the diffusers class cannot have.
        """
        levels = range(len(self.channel_mult))
        attends = [2**level in self.attention_resolutions for level in levels]
        widths = [self.model_channels * m for m in self.channel_mult]
        if self.use_spatial_transformer and self.context_dim is None:
            raise ValueError("use_spatial_transformer needs context_dim")
        context = self.context_dim if self.use_spatial_transformer else None
        return unet_keywords(
            (self.in_channels, self.out_channels, self.image_size),
            widths,
            attends,
            self.num_res_blocks,
            self._heads(widths),
            context,
            self.transformer_depth,
        )

    def _heads(self, widths: list[int]) -> int | list[int]:
        """Number of heads with a context, else channels of a head."""
        if self.use_spatial_transformer:
            if self.num_head_channels > 0:
                return [width // self.num_head_channels for width in widths]
            if self.num_heads > 0:
                return self.num_heads
        elif self.num_head_channels > 0:
            return self.num_head_channels
        raise ValueError("heads are given by num_head_channels, or num_heads with a context")


class StageParams(_Strict):
    """``ddconfig`` of CompVis' autoencoders."""

    z_channels: Width
    resolution: Width
    in_channels: Literal[3]
    out_ch: Literal[3]
    ch: Width
    ch_mult: Mult
    num_res_blocks: Count
    attn_resolutions: Annotated[tuple[int, ...], Field(max_length=0)] = ()
    double_z: bool = False
    dropout: float = 0.0
    resamp_with_conv: Literal[True] = True
    tanh_out: Literal[False] = False


class _StageModel(_Loose):
    ddconfig: StageParams
    embed_dim: Width
    n_embed: Annotated[int, Field(ge=1, le=MOST_ROWS)] | None = None


class _Stage(_Loose):
    target: str
    params: _StageModel

    def keywords(self) -> dict[str, Any]:
        """Class and keywords of the diffusers autoencoder."""
        given, dd = self.params, self.params.ddconfig
        kind = self.target.rpartition(".")[2]
        if kind not in ("VQModel", "VQModelInterface", "AutoencoderKL"):
            raise ValueError(f"the first stage is a {kind[:40]!a}, no VQModel or AutoencoderKL")
        if (kind == "AutoencoderKL") != (given.n_embed is None) or dd.double_z != (
            kind == "AutoencoderKL"
        ):
            raise ValueError(f"double_z or n_embed do not belong to a {kind}")
        widths = [dd.ch * m for m in dd.ch_mult]
        return stage_keywords(
            dd.z_channels, given.embed_dim, given.n_embed, widths, dd.num_res_blocks, dd.resolution
        )


class _UNet(_Loose):
    params: UNetParams


class _ClassParams(_Loose):
    n_classes: Annotated[int, Field(ge=2, le=MOST_ROWS)] = 1000
    embed_dim: Width


class _Classes(_Loose):
    target: Annotated[str, Field(pattern=r"(^|\.)ClassEmbedder$")]
    params: _ClassParams


class _Params(_Loose):
    linear_start: Annotated[float, Field(gt=0, lt=1)]
    linear_end: Annotated[float, Field(gt=0, lt=1)]
    timesteps: Literal[1000] = 1000
    beta_schedule: Literal["linear"] = "linear"  # CompVis' word for linear in the square root
    parameterization: Literal["eps"] = "eps"
    scale_factor: Annotated[float, Field(gt=0, le=LARGEST_SCALE)] = 1.0
    unet_config: _UNet
    first_stage_config: _Stage
    cond_stage_config: _Classes | Literal["__is_unconditional__"]


class _Model(_Loose):
    params: _Params


class _Config(_Loose):
    model: _Model


def read_config(path: Path) -> Layout:
    """The hyperparameters in a CompVis config; nothing it names is imported.

    Args:
        path: YAML file.

    Raises:
        SolverBenchError: for a missing or foreign file, or a model that is not supported.
    """
    given = _parsed(path)
    try:
        return _layout(_Config.model_validate(given).model.params)
    except ValidationError as error:
        raise SolverBenchError(f"config {path}: {first_fault(error)}") from error
    except ValueError as error:
        raise SolverBenchError(f"config {path}: {error}") from error


def _parsed(path: Path) -> Any:
    """YAML as plain data; the only place where the errors of its parser are met."""
    with readable(path):
        if not path.exists():
            raise SolverBenchError(f"config {path} cannot be read: it is missing")
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise SolverBenchError(
                f"config {path} is no config of a latent diffusion model: wanted is a file of up "
                f"to {LARGEST} bytes"
            )
        data = path.read_bytes()
    try:
        return yaml.safe_load(data.decode())
    except NO_YAML as error:
        told = getattr(error, "problem", None) or error
        foreign = not isinstance(error, yaml.YAMLError | ValueError | RecursionError)
        reason = "a value does not fit its tag" if foreign else " ".join(str(told).split())[:160]
        raise SolverBenchError(f"config {path}: no YAML: {reason}") from error


def _layout(given: _Params) -> Layout:
    unet, classes = given.unet_config.params, given.cond_stage_config
    rows = (
        (0, 0) if isinstance(classes, str) else (classes.params.n_classes, classes.params.embed_dim)
    )
    if rows[1] != ((unet.context_dim or 0) if unet.use_spatial_transformer else 0):
        raise ValueError("context_dim of the network is not embed_dim of the classes")
    stage = given.first_stage_config
    if not stage.params.embed_dim == unet.in_channels == unet.out_channels:
        raise ValueError("channels of the network are not those of the first stage")
    betas = given.linear_start, given.linear_end
    made = Layout(unet.keywords(), stage.keywords(), *rows, *betas, given.scale_factor)
    return checked_layout(made)
