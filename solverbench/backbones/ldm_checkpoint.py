"""CompVis checkpoints of latent diffusion models, read without running them.

Source: backbones.md section 3.2.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solverbench.backbones.ldm_facts import LARGEST_SCALE
from solverbench.backbones.ldm_layout import (
    CLASSES,
    EMA,
    RAW,
    STAGE,
    Facts,
    Layout,
    Place,
    of_shapes,
    stage_place,
    unet_place,
)
from solverbench.schedule import VPDiscrete
from solverbench.sources import Source, refuse
from solverbench.torchfile import NUMPY, Stored, read_any
from solverbench.unpickle import Names

BUFFERS = {  # top-level tensors of a CompVis file
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "logvar", "lvlb_weights"),
    *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"),
    *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    "scale_factor",
}
AVERAGE_FACTS = ("model_ema.decay", "model_ema.num_updates")
TRAINING = f"{STAGE}loss."  # discriminator and perceptual network of a first stage
SCHEDULE_GAP = 1e-5  # relative; float32 buffers of a float64 schedule differ by 1e-6
NAMES: Names = {  # Lightning keys its callbacks by class; the name is all that is kept of it
    **NUMPY,
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): "label",
}


@dataclass(frozen=True, slots=True)
class Lazy:
    """A tensor that is read when asked for.

    Attributes:
        shape: as usual.
        dtype: in the file.
        read: gives it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


Finder = Callable[[Iterable[str]], dict[str, Lazy]]  # wanted names to what is there, more or less


class Opened(NamedTuple):
    """A file with its tensors still in it.

    Attributes:
        facts: what it says.
        unet: finds the tensors of the UNet.
        first_stage: those of the autoencoder.
        classes: those of the class embedding.
    """

    facts: Facts
    unet: Finder
    first_stage: Finder
    classes: Finder


def open_checkpoint(source: Source, layout: Layout | None, digest: str, ema: bool) -> Opened:
    """A CompVis file.

    Args:
        source: the file; it must stay open while tensors are read.
        layout: that of its config; None to tell it from the tensors.
        digest: SHA-256 of the file.
        ema: take averaged weights where there are any.

    Raises:
        SolverBenchError: for anything but a latent diffusion model, unconditional or with classes.
    """
    stored = _state(source)
    groups = _groups(stored)
    averaged = ema and any(key.startswith(EMA) for key in stored)
    if not groups[STAGE]:
        refuse(f"it holds no first stage ({STAGE}*); a file with both networks is needed")
    if not averaged and not groups[RAW]:
        refuse(f"it holds no network ({RAW}*)")
    layout = layout or of_shapes({k: v.shape for k, v in stored.items()}, _ends(groups["buffers"]))
    layout = _checked(layout, groups["buffers"])
    unet = {k: v for k, v in groups["model_ema."].items() if k not in AVERAGE_FACTS}
    unet = unet if averaged else groups[RAW]
    facts = Facts(
        layout,
        "ema" if averaged else "raw",
        dtype_of([unet, groups[STAGE]]),
        num_parameters_of(unet),
        num_parameters_of(groups[STAGE]),
        digest,
    )
    where = _average_place if averaged else _raw_place
    return Opened(
        facts,
        _finder(unet, partial(where, layout.unet), layout.unet["attention_head_dim"]),
        _finder(groups[STAGE], partial(_stage_place, layout.first_stage)),
        _finder(groups["cond_stage_model."], lambda key: Place(CLASSES)),
    )


def _raw_place(keywords: Mapping[str, Any], key: str) -> Place:
    place = unet_place(key, keywords)
    return Place(RAW + place.key, place.part)


def _average_place(keywords: Mapping[str, Any], key: str) -> Place:
    place = unet_place(key, keywords)
    return Place(EMA + place.key.replace(".", ""), place.part)


def _stage_place(keywords: Mapping[str, Any], key: str) -> Place:
    return Place(STAGE + stage_place(key, keywords).key)


def _finder(
    stored: dict[str, Stored], place: Callable[[str], Place], head: int | None = None
) -> Finder:
    """Tensors under the names that are wanted; those that nobody wants under their own."""

    def find(wanted: Iterable[str]) -> dict[str, Lazy]:
        places = {key: place(key) for key in wanted}
        used = {p.key for p in places.values()}
        found = {k: _lazy(v, None, 1) for k, v in stored.items() if k not in used}
        for key, (name, part) in places.items():
            if name in stored:
                found[key] = _lazy(stored[name], part, head or 1)
        return found

    return find


def _lazy(stored: Stored, part: int | None, head: int) -> Lazy:
    """A tensor of a file, or the q, k or v in it: its rows are (head, q k v, channel)."""
    dtype, shape = stored.storage.dtype, stored.shape
    if part is None:
        return Lazy(shape, dtype, stored.read)
    own = (shape[0] // 3, *shape[1:]) if shape and shape[0] % (3 * head) == 0 else shape

    def read() -> Tensor:
        whole = stored.read()
        return whole.reshape(-1, 3, head, *shape[1:])[:, part].reshape(own)

    return Lazy(own, dtype, read)


def _state(source: Source) -> dict[str, Stored]:
    """The ``state_dict`` of a checkpoint, tensors left in the file."""
    tree = read_any(source, NAMES)
    state = tree.get("state_dict", tree) if isinstance(tree, dict) else None
    if not isinstance(state, dict) or not any(type(value) is Stored for value in state.values()):
        refuse("it holds no network under 'state_dict'")
    if not all(type(k) is str and type(v) is Stored for k, v in state.items()):
        refuse("its state_dict has entries that are no tensors")
    if sum(value.num_bytes for value in state.values()) > source.size:
        refuse("its tensors are larger than the file")
    return {k: v for k, v in state.items() if not k.startswith(TRAINING)}


def _groups(stored: dict[str, Stored]) -> dict[str, dict[str, Stored]]:
    """Tensors by the part of the model they belong to."""
    groups: dict[str, dict[str, Stored]] = {"buffers": {}}
    prefixes = (RAW, "model_ema.", STAGE, "cond_stage_model.")
    groups |= {prefix: {} for prefix in prefixes}
    for key, value in stored.items():
        prefix = next((p for p in prefixes if key.startswith(p)), "buffers")
        if prefix == "buffers" and key not in BUFFERS:
            refuse(f"the tensor {key[:80]!a} belongs to no latent diffusion model")
        groups[prefix][key] = value
    if groups["cond_stage_model."].keys() - {CLASSES}:
        refuse("it is conditioned on something else than classes; for text see the backbone sd")
    return groups


def _ends(buffers: dict[str, Stored]) -> tuple[float, float] | None:
    """First and last beta, as they were written in the config."""
    if "betas" not in buffers:
        return None
    betas = _buffer(buffers["betas"])
    digits = 6 if buffers["betas"].storage.dtype.itemsize >= 4 else 3  # as many as the type holds
    first, last = (float(f"{float(end):.{digits}g}") for end in (betas[0], betas[-1]))
    if not 0 < first < last < 1:
        refuse("its betas are those of no known schedule")
    return first, last


def _checked(layout: Layout, buffers: dict[str, Stored]) -> Layout:
    """The layout with the file's own scale; its schedule must be that of the file."""
    made = VPDiscrete(layout.beta_first, layout.beta_last).alphas_cumprod
    for key, wanted in (("alphas_cumprod", made), ("betas", None)):
        held = buffers.get(key)
        if held is None or held.storage.dtype != torch.float32:
            continue
        values = _buffer(held)
        if wanted is None:
            wanted = 1 - torch.cat([made[:1], made[1:] / made[:-1]])
        if not bool(((values / wanted - 1).abs() < SCHEDULE_GAP).all()):
            ends = f"{layout.beta_first:g} .. {layout.beta_last:g}"
            refuse(f"its {key} are not those of 1000 betas {ends}, linear in their square roots")
    scale = buffers.get("scale_factor")
    return layout if scale is None else layout._replace(scale=_scale(scale))


def _scale(stored: Stored) -> float:
    scale = float(stored.read()) if stored.shape == () else math.nan
    if not 0 < scale <= LARGEST_SCALE:
        refuse(f"its scale_factor is {scale}, shape {stored.shape}")
    return scale


def _buffer(stored: Stored) -> Tensor:
    """One of the 1000 numbers of a schedule, float64."""
    if stored.shape != (1000,):
        refuse("its schedule has not 1000 steps")
    return stored.read().double()


def num_parameters_of(part: Mapping[str, Any]) -> int:
    """Numbers in some tensors."""
    return sum(math.prod(value.shape) for value in part.values())


def dtype_of(parts: Iterable[Mapping[str, Any]]) -> str:
    """``float16`` where all tensors are, else ``float32``."""
    kinds = {getattr(v, "storage", v).dtype for part in parts for v in part.values()}
    return "float16" if kinds == {torch.float16} else "float32"
