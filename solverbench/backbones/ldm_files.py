"""Files of latent diffusion models: CompVis checkpoints, diffusers folders, converted safetensors.

No program in a file is run, and tensors stay there until they are needed.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from solverbench import tensorfile
from solverbench.backbones.latent import diffusers_of
from solverbench.backbones.ldm_checkpoint import (
    Finder,
    Lazy,
    Opened,
    dtype_of,
    num_parameters_of,
    open_checkpoint,
)
from solverbench.backbones.ldm_config import read_config
from solverbench.backbones.ldm_facts import STAGES, checked_facts, checked_layout, first_fault
from solverbench.backbones.ldm_layout import KINDS, Facts, Layout
from solverbench.backbones.settings import UNBUILDABLE, read_json, readable
from solverbench.errors import SolverBenchError
from solverbench.files import sha256_of
from solverbench.sources import open_source

FORMAT = "solverbench-ldm-1"
FOLDER_FILE = "diffusion_pytorch_model.safetensors"


class LoadedLDM(NamedTuple):
    """A model in memory, float32.

    Attributes:
        unet: diffusers UNet.
        first_stage: diffusers autoencoder.
        classes: embedding of the classes, the null class last; None for an unconditional model.
        facts: what the file says.
    """

    unet: nn.Module
    first_stage: nn.Module
    classes: nn.Embedding | None
    facts: Facts


def load_ldm(path: Path, config: Path | None = None, ema: bool = True) -> LoadedLDM:
    """A model from a CompVis checkpoint, a diffusers folder or a converted file.

    Args:
        path: ``.ckpt`` file, folder with ``unet`` and ``vqvae`` or ``vae``, ``.safetensors`` file.
        config: CompVis YAML of a checkpoint; not needed for published ones.
        ema: take averaged weights where a checkpoint has them.

    Raises:
        SolverBenchError: for a missing, damaged, foreign or hostile file, or one whose tensors are
            not those of its configuration.
    """
    with _opened(path, config, ema) as (facts, *finders):
        layout = facts.layout
        if not layout.unet["sample_size"]:
            raise SolverBenchError(
                "heads and image size are not in a checkpoint, and this is no published one; give "
                "config=PATH, the YAML file that belongs to it"
            )
        unet = _filled(build(layout.unet), "UNet", finders[0])
        first_stage = _filled(build(layout.first_stage), "first stage", finders[1])
        classes = None
        if layout.num_rows:
            with torch.device("meta"):
                classes = nn.Embedding(layout.num_rows, layout.width)
            classes = cast(nn.Embedding, _filled(classes, "class embedding", finders[2]))
    return LoadedLDM(unet, first_stage, classes, facts)


def inspect_ldm(path: Path, config: Path | None = None) -> Facts:
    """What ``load_ldm`` would load, without building it.

    Heads and image size of an unpublished checkpoint without config are None and 0.

    Raises:
        SolverBenchError: for a missing, damaged, foreign or hostile file.
    """
    with _opened(path, config, ema=True) as opened:
        return opened.facts


def save_ldm(path: Path, loaded: LoadedLDM) -> None:
    """Write a model so that ``load_ldm`` reads it, in the type it was published in."""
    parts = {"unet": loaded.unet, "first_stage": loaded.first_stage, "classes": loaded.classes}
    dtype = getattr(torch, loaded.facts.dtype)
    tensors = {
        f"{name}.{key}": value.to(dtype)
        for name, part in parts.items()
        if part is not None
        for key, value in part.state_dict().items()
    }
    facts = loaded.facts._asdict() | {"layout": loaded.facts.layout._asdict()}
    tensorfile.write(path, FORMAT, tensors, facts)


def build(keywords: Mapping[str, Any]) -> nn.Module:
    """A diffusers module, its tensors without values (on the ``meta`` device).

    Args:
        keywords: of its constructor, and its class under ``_class_name``.

    Raises:
        SolverBenchError: for a class or keywords that are not known, or without diffusers.
    """
    name = keywords.get("_class_name")
    if name not in KINDS:
        known = ", ".join(KINDS)
        raise SolverBenchError(f"a network is a {str(name)[:40]!a}; known are {known}")
    kind = getattr(diffusers_of("ldm"), name)
    try:
        with torch.device("meta"):
            return cast(nn.Module, kind(**{k: v for k, v in keywords.items() if k[:1] != "_"}))
    except UNBUILDABLE as error:
        line = str(error).strip().partition("\n")[0][:160]
        raise SolverBenchError(f"no {name} can be made so: {line}") from error


def _filled(module: nn.Module, what: str, find: Finder) -> nn.Module:
    """The module with its weights, float32, each with its own memory."""
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = find(wanted)
    other = {k for k, v in found.items() if k in wanted and not _fits(v.shape, wanted[k])}
    for fault, keys in (
        ("lacks tensors that its configuration asks for", wanted.keys() - found.keys()),
        ("has tensors that its configuration does not know", found.keys() - wanted.keys()),
        ("has tensors of other sizes than its configuration says", other),
    ):
        if keys:
            first = sorted(keys)[0][:100]
            raise SolverBenchError(f"the {what} {fault}: {len(keys)}, the first is {first!a}")
    read = {key: found[key].read().float().reshape(shape) for key, shape in wanted.items()}
    module.load_state_dict(read, assign=True)
    return module.eval().requires_grad_(False)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Equal but for ends of length 1: attention layers are written as 1 x 1 convolutions too."""
    return shape[: len(wanted)] == wanted and set(shape[len(wanted) :]) <= {1}


@contextmanager
def _opened(path: Path, config: Path | None, ema: bool) -> Iterator[Opened]:
    with readable(path), _opened_as(path, config, ema) as opened:
        yield opened


@contextmanager
def _opened_as(path: Path, config: Path | None, ema: bool) -> Iterator[Opened]:
    """By what lies there; the system's complaints are left as they are."""
    if config is not None and (path.is_dir() or path.suffix == ".safetensors"):
        raise SolverBenchError(f"{path} holds its own configuration; leave config away")
    if path.is_dir():
        with _folder(path) as opened:
            yield opened
    elif not path.is_file():
        raise SolverBenchError(f"{path} is missing: a latent diffusion model belongs there")
    elif path.suffix == ".safetensors":
        yield _converted(path)
    else:
        layout = read_config(config) if config else None
        with open_source(path) as source:
            yield open_checkpoint(source, layout, sha256_of(path), ema)


def _converted(path: Path) -> Opened:
    tensors, stored = tensorfile.read(path, FORMAT)
    try:
        facts = checked_facts(stored)
    except ValidationError as error:
        said = first_fault(error)
        raise SolverBenchError(f"{path} is no {FORMAT} file of solverbench: {said}") from error
    found: dict[str, dict[str, Lazy]] = {"unet": {}, "first_stage": {}, "classes": {}}
    for key, value in tensors.items():
        part, _, rest = key.partition(".")
        lazy = Lazy(tuple(value.shape), value.dtype, partial(_given, value))
        found.setdefault(part, {})[rest] = lazy
    return Opened(facts, *(_plain(found[part]) for part in ("unet", "first_stage", "classes")))


def _given(value: Tensor) -> Tensor:
    return value


def _plain(found: dict[str, Lazy]) -> Finder:
    return lambda wanted: found


@contextmanager
def _folder(path: Path) -> Iterator[Opened]:
    """A diffusers folder of an unconditional model."""
    stages = [name for name in ("vqvae", "vae") if (path / name).is_dir()]
    if not stages or not (path / "unet").is_dir():
        raise SolverBenchError(f"{path} has no folders unet and vqvae (or vae)")
    unet, stage = (read_json(path / name / "config.json") for name in ("unet", stages[0]))
    if unet.get("_class_name") == KINDS[1] or unet.get("num_class_embeds"):
        raise SolverBenchError(
            f"{path}: a folder has no place for classes; load the .ckpt or a converted file"
        )
    layout = _layout(path, unet, stage)
    files = [path / name / FOLDER_FILE for name in ("unet", stages[0])]
    with ExitStack() as stack:
        parts = [_safetensors(file, stack) for file in files]
        digests = [sha256_of(file) for file in files]
        facts = Facts(
            layout,
            "diffusers",
            dtype_of(parts),
            num_parameters_of(parts[0]),
            num_parameters_of(parts[1]),
            hashlib.sha256("".join(digests).encode()).hexdigest(),
        )
        yield Opened(facts, *(_plain(part) for part in [*parts, {}]))


def _layout(path: Path, unet: dict[str, Any], stage: dict[str, Any]) -> Layout:
    """What the settings in a folder say."""
    betas = _betas(path / "scheduler" / "scheduler_config.json")
    # a VQModel says 0.18215 by default, which no VQ model was trained with
    is_kl = stage.get("_class_name") == STAGES[1]
    scale = stage.get("scaling_factor", 1.0) if is_kl else 1.0
    try:
        return checked_layout(Layout(_public(unet), _public(stage), 0, 0, *betas, scale))
    except ValidationError as error:
        raise SolverBenchError(f"{path}: {first_fault(error)}") from error


def _safetensors(file: Path, stack: ExitStack) -> dict[str, Lazy]:
    if not file.is_file():
        raise SolverBenchError(f"{file} is missing; other files of weights are not read")
    stored = tensorfile.inspect(stack.enter_context(open_source(file)))[0]
    return {k: Lazy(v.shape, v.storage.dtype, v.read) for k, v in stored.items()}


def _public(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: v for key, v in settings.items() if key[:1] != "_" or key == "_class_name"}


def _betas(path: Path) -> tuple[Any, Any]:
    """First and last beta of a diffusers scheduler, as it says."""
    given = read_json(path)
    wanted = {"beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    for key, value in (wanted | {"prediction_type": "epsilon"}).items():
        if given.get(key, None if key in wanted else value) != value:
            raise SolverBenchError(f"{path}: {key} must be {value!r}")
    return given.get("beta_start"), given.get("beta_end")
