"""The paper's teacher sets: pickles of many gigabytes, copied into shards a part at a time."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverbench.backbones.base import Backbone
from solverbench.benchmark.importing.artefacts import has_dense_rows, read_parts
from solverbench.benchmark.importing.pairs import (
    Index,
    Kind,
    Origin,
    kind_of,
    prompts_of,
    write_index,
    write_shard,
)
from solverbench.benchmark.sampling import Progress
from solverbench.errors import SolverBenchError
from solverbench.sources import Source, open_source, refuse
from solverbench.torchfile import Stored

SHARD = 1 << 24  # bytes of a shard, about; some copies of one are all that is ever in memory
SIGMAS = 6  # of sampling error that statistics of noise may be off
SPARE = 1 << 26  # bytes left free on the disk


@dataclass(frozen=True, eq=False)
class Published:
    """A teacher set in its file.

    Attributes:
        noise: (n, C, H, W), float32.
        states: where the teacher ended, latents or images, shape of ``noise``.
        images: decoded, (n, C', H', W').
        kind: what rows are conditioned on.
        labels: class or number of the prompt, (n,), int64, or None.
        prompts: one a row, or none.
    """

    noise: Stored
    states: Stored
    images: Stored
    kind: Kind
    labels: Tensor | None = None
    prompts: Sequence[str] = ()


def import_teacher(
    path: Path,
    backbone: Backbone,
    out: Path,
    images: bool = False,
    progress: Progress = lambda done, total: None,
) -> Index:
    """Copy a published teacher set into shards that a fit reads, rows in their order.

    Shards are written aside and their folder is renamed at the end: an import that was cut short
    leaves no set, and the next one starts again.

    Args:
        path: a pickle or a file of ``torch.save``.
        backbone: the network it belongs to; shapes and conditions must fit.
        out: folder to make.
        images: copy the decoded images too, which training does not need.
        progress: told of rows.

    Returns:
        The index of the new set.

    Raises:
        SolverBenchError: for a file that holds anything else, a full disk, or a folder that exists.
    """
    _check_free(out)
    aside = out.absolute().with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # of an import that was killed
    try:
        with open_source(path) as source:
            found = _checked(published(source), backbone)
            parts = {"noise": found.noise, "states": found.states}
            parts |= {"images": found.images} if images else {}
            _check_space(aside, sum(part.num_bytes for part in parts.values()))
            size, shards = _copy(found, parts, aside, progress)
            first = replace(found.noise, shape=(1, *found.noise.shape[1:])).read()
            origin = Origin(
                file=path.name,
                num_bytes=source.size,
                backbone=backbone.name,
                cpu_noise=torch.equal(first, backbone.noise([0]).cpu()),
            )
        index = Index(
            rows=found.noise.shape[0],
            rows_a_shard=size,
            shards=tuple(shards),
            state_shape=backbone.state_shape,
            condition=found.kind,
            images=images,
            origin=origin,
        )
        write_index(aside, index)
        _move(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return index


def _check_free(out: Path) -> None:
    try:
        taken = out.exists() or out.name in ("", "..")
    except OSError as error:  # too long, for example
        raise SolverBenchError(f"cannot make {out}: {error.strerror}. Name another") from error
    if taken:
        raise SolverBenchError(f"{out} exists; remove it, or name another folder with --out")


def _move(aside: Path, out: Path) -> None:
    try:
        aside.rename(out)
    except OSError as error:
        raise SolverBenchError(f"cannot make {out}: {error.strerror}. Name another") from error


def published(source: Source) -> Published:
    """What a published set holds, checked without reading its numbers.

    Raises:
        SolverBenchError: where parts are missing, of other shapes or types, or rows do not lie one
            after the other.
    """
    wanted = ("noise", "images", "latents", "condition")
    found = read_parts(source, "a teacher set", wanted)
    noise, images = _rows(found["noise"], "noise"), _rows(found["images"], "images")
    num, latents = noise.shape[0], found["latents"]
    if type(latents) is not list:
        states = _rows(latents, "latents")
    else:
        states = images
        if latents != [None] * num:
            refuse(f"latents is neither a tensor nor a list of {num} times None")
    for name, part in (("images", images), ("latents", states)):
        if part.shape[0] != num:
            refuse(f"noise has {num} rows, {name} has {part.shape[0]}")
    if states.shape != noise.shape:
        name = "images" if states is images else "latents"
        refuse(f"noise has shape {noise.shape}, {name} has {states.shape}; they must be equal")
    return _conditioned(Published(noise, states, images, "none"), found["condition"])


def _rows(part: Any, name: str) -> Stored:
    if type(part) is not Stored or len(part.shape) != 4 or 0 in part.shape:
        refuse(f"{name} is no tensor of shape (n, C, H, W)")
    if part.storage.dtype != torch.float32:
        refuse(f"{name} holds {part.storage.dtype}; it must hold torch.float32")
    if not has_dense_rows(part):
        refuse(f"the rows of {name} do not lie one after the other (strides {part.stride})")
    return part


def _conditioned(found: Published, condition: Any) -> Published:
    """With what the rows are conditioned on."""
    num = found.noise.shape[0]
    if type(condition) is Stored:
        if condition.shape != (num,) or condition.storage.dtype != torch.int64:
            refuse(f"condition is no int64 tensor of {num} labels")
        return replace(found, kind="class", labels=condition.read())
    if type(condition) is not list or len(condition) != num:
        refuse(f"condition is neither a tensor nor a list of {num} entries")
    if condition == [None] * num:
        return found
    if not all(type(prompt) is str for prompt in condition):
        refuse("condition mixes prompts with something else")
    return replace(found, kind="prompt", prompts=[prompt.strip() for prompt in condition])


def _checked(found: Published, backbone: Backbone) -> Published:
    """With labels that the backbone understands."""
    shape, wanted = found.noise.shape[1:], tuple(backbone.state_shape)
    if shape != wanted:
        refuse(f"its states have shape {shape}, those of backbone {backbone.name} {wanted}")
    if found.kind != kind_of(backbone):
        refuse(
            f"its rows are conditioned on {found.kind}, backbone {backbone.name} on "
            f"{kind_of(backbone)}"
        )
    if found.labels is not None:
        classes = getattr(backbone, "num_classes", None) or int(found.labels.max()) + 1
        if not 0 <= int(found.labels.min()) <= int(found.labels.max()) < classes:
            refuse(f"its labels lie outside 0 .. {classes - 1}")
    if found.kind == "prompt":
        return replace(found, labels=_numbered(found.prompts, backbone))
    return found


def _numbered(prompts: Sequence[str], backbone: Backbone) -> Tensor:
    """The number of each prompt in the backbone's list, (n,), int64; the first of equal ones."""
    places = {prompt: i for i, prompt in reversed(list(enumerate(prompts_of(backbone))))}
    for row, prompt in enumerate(prompts):
        if prompt not in places:
            raise SolverBenchError(
                f"backbone {backbone.name} does not know the prompt of row {row}, "
                f"{prompt[:60]!a}; load it with the prompts that the set was made from"
            )
    return torch.tensor([places[prompt] for prompt in prompts])


def _check_space(folder: Path, needed: int) -> None:
    here = next(place for place in folder.parents if place.exists())
    free = shutil.disk_usage(here).free
    if free < needed + SPARE:
        raise SolverBenchError(
            f"the copy takes {needed / 1e9:.2f} GB and {here} has {free / 1e9:.2f} GB free; "
            "free space, or name a folder elsewhere with --out"
        )


def _copy(
    found: Published, parts: dict[str, Stored], folder: Path, progress: Progress
) -> tuple[int, list[str]]:
    """Write all shards; rows of one and the checksums. Noise is looked at before it is written."""
    num = found.noise.shape[0]
    size = max(1, SHARD * num // sum(part.num_bytes for part in parts.values()))
    shards = []
    for first in range(0, num, size):
        rows = slice(first, min(first + size, num))
        tensors = {name: _slice(part, rows) for name, part in parts.items()}
        check_noise(tensors["noise"], first)
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                refuse(f"{name} of rows {first} .. {rows.stop - 1} are not all finite")
        if found.labels is not None:
            tensors["labels"] = found.labels[rows]
        shards.append(write_shard(folder, first, tensors, found.prompts[rows]))
        progress(rows.stop, num)
    return size, shards


def _slice(part: Stored, rows: slice) -> Tensor:
    """Some rows of a stored tensor; no others are read."""
    shape = (rows.stop - rows.start, *part.shape[1:])
    return replace(part, offset=part.offset + rows.start * part.stride[0], shape=shape).read()


def check_noise(noise: Tensor, first: int = 0) -> None:
    """Refuse what is no standard normal white noise, such as images in its place.

    Args:
        noise: some rows, (n, C, H, W).
        first: number of the first row, for the message.

    Raises:
        SolverBenchError: where mean, mean square or the product of neighbours are off by more than
            ``SIGMAS`` standard errors.
    """
    found = {
        "mean": (noise.mean(), 0.0, noise.numel()),
        "mean square": (noise.square().mean(), 1.0, noise.numel() / 2),
    }
    if noise.shape[-1] > 1:
        near = noise[..., 1:] * noise[..., :-1]
        found["product of neighbours"] = (near.mean(), 0.0, near.numel())
    for name, (value, wanted, count) in found.items():
        if not abs(float(value) - wanted) <= SIGMAS / count**0.5:
            refuse(
                f"noise from row {first} on is no standard normal noise (its {name} is "
                f"{float(value):.3g}); noise and images may be in the wrong order"
            )
