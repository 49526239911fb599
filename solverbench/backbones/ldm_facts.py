"""What files say about latent diffusion models, checked before anything is built from it."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from solverbench.backbones.ldm_layout import KINDS, Facts, Layout
from solverbench.backbones.settings import WIDEST, check_settings, check_sizes

LARGEST_SCALE = 1e6
MOST_ROWS = 1 << 20  # of the class embedding
Beta = Annotated[float, Field(gt=0, lt=1)]
Number = Annotated[int, Field(ge=0)]
UNETS, STAGES = KINDS[:2], KINDS[2:]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Layout(_Strict):
    """The fields of ``Layout``."""

    unet: dict[str, Any]
    first_stage: dict[str, Any]
    num_rows: Annotated[int, Field(ge=0, le=MOST_ROWS)]
    width: Annotated[int, Field(ge=0, le=WIDEST)]
    beta_first: Beta
    beta_last: Beta
    scale: Annotated[float, Field(gt=0, le=LARGEST_SCALE)]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for part, kinds in ((self.unet, UNETS), (self.first_stage, STAGES)):
            if part.get("_class_name") not in kinds:
                raise ValueError(f"a network is none of {', '.join(kinds)}")
            check_settings(part)
            if "block_out_channels" not in part:
                raise ValueError("block_out_channels is missing")
        check_sizes(self.unet, ("sample_size", "in_channels"))
        guided = self.unet["_class_name"] == "UNet2DConditionModel"
        if not guided == (self.num_rows > 0) == (self.width > 0):
            raise ValueError("num_rows and width belong to a UNet2DConditionModel, and to no other")
        if not self.beta_first < self.beta_last:
            raise ValueError("beta_first must be below beta_last")
        return self


class _Facts(_Strict):
    """The fields of ``Facts``."""

    layout: _Layout
    weights: Literal["ema", "raw", "diffusers"]
    dtype: Literal["float16", "float32"]
    num_parameters: Number
    num_stage_parameters: Number
    file_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def checked_layout(given: Layout) -> Layout:
    """Hyperparameters of a file, refused where no model has them.

    Raises:
        ValueError: a ``ValidationError`` of pydantic; see ``first_fault``.
    """
    return Layout(**dict(_Layout.model_validate(given._asdict())))


def checked_facts(given: object) -> Facts:
    """Facts in the header of a converted file.

    Args:
        given: JSON values.

    Raises:
        ValueError: as ``checked_layout``.
    """
    found = _Facts.model_validate(given)
    return Facts(**dict(found) | {"layout": Layout(**dict(found.layout))})


def first_fault(error: ValidationError) -> str:
    """The first fault, short: where it is and what is wrong."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"][-3:])[:80]
    said = first["msg"].removeprefix("Value error, ")[:160]
    return f"{where}: {said}" if where else said
