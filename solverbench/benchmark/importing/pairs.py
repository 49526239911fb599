"""Teacher pairs that were made elsewhere: shards on disk, and an index that is written last."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor

from solverbench import tensorfile
from solverbench.backbones.base import Backbone, Condition
from solverbench.benchmark.rows import Rows, StoredRows, stays
from solverbench.benchmark.sampling import Samples
from solverbench.benchmark.spec import FitSpec, Model
from solverbench.errors import SolverBenchError
from solverbench.files import sha256_of, write_text
from solverbench.solvers.tableau import Tableau, sample
from solverbench.tensorfile import Place

FORMAT: Final = "solverbench-pairs-1"
INDEX = "index.json"
Kind = Literal["none", "class", "prompt"]
NUM_CHECKED = 4  # rows that the recipe's teacher makes anew
ALIKE = 0.25  # largest difference of such a row, of its size


class Origin(Model):
    """Where a set came from.

    Attributes:
        file: its name.
        num_bytes: its size.
        backbone: whose shapes and conditions it was checked against.
        cpu_noise: whether its first row starts from our noise of seed 0; published sets were drawn
            on CUDA, whose numbers differ.
    """

    file: str
    num_bytes: NonNegativeInt
    backbone: str
    cpu_noise: bool


class Index(Model):
    """What a set holds.

    Attributes:
        layout: name and version.
        rows: pairs, in the order of the file that they came from.
        rows_a_shard: all shards but the last have so many.
        shards: checksums of the shards, in order.
        state_shape: of noise and states, (C, H, W).
        condition: what rows are conditioned on.
        images: whether decoded images are stored too.
        origin: where it came from.
    """

    layout: Literal["solverbench-pairs-1"] = FORMAT
    rows: PositiveInt
    rows_a_shard: PositiveInt
    shards: tuple[str, ...]
    state_shape: tuple[int, int, int]
    condition: Kind
    images: bool
    origin: Origin


def read_index(folder: Path) -> Index:
    """The index of a set.

    Raises:
        SolverBenchError: where there is none, or it is damaged.
    """
    path = folder / INDEX
    try:
        if not path.is_file():
            raise SolverBenchError(
                f"no teacher set in {folder}. Make one with: solverbench import teacher FILE"
            )
        index = Index.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise SolverBenchError(f"{path} is damaged or of another version; import again") from error
    if len(index.shards) != -(-index.rows // index.rows_a_shard):
        raise SolverBenchError(f"{path} is damaged: shards are missing; import again")
    return index


def write_index(folder: Path, index: Index) -> None:
    """Write the index of a set, after all of its shards."""
    write_text(folder / INDEX, index.model_dump_json(indent=1) + "\n")


def set_sha256(folder: str | None) -> str:
    """The identity of a set: a checksum over those of its shards; empty where there is none."""
    return sha256_of(Path(folder) / INDEX) if folder else ""


def write_shard(folder: Path, first: int, tensors: dict[str, Tensor], texts: Sequence[str]) -> str:
    """Write some rows.

    Args:
        folder: of the set.
        first: their first row.
        tensors: ``noise``, ``states`` and, where there are any, ``labels`` and ``images``.
        texts: prompt of each row, or none.

    Returns:
        The checksum of the file.
    """
    path = _shard(folder, first)
    tensorfile.write(path, FORMAT, tensors, {"first": first, "prompts": _digest(texts)})
    return sha256_of(path)


def _shard(folder: Path, first: int) -> Path:
    return folder / f"{first:08d}.safetensors"


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest() if texts else ""


def prompts_of(backbone: Backbone) -> Sequence[str]:
    """The prompts that a text model's labels number, stripped; none for others."""
    return [line.strip() for line in backbone.prompt_lines]


def kind_of(backbone: Backbone) -> Kind:
    """What a backbone is conditioned on."""
    if backbone.condition([0]) is None:
        return "none"
    return "prompt" if prompts_of(backbone) else "class"


def check_set(spec: FitSpec, backbone: Backbone) -> None:
    """Refuse a set that a fit cannot use, by its index alone; nothing where the fit names none.

    Raises:
        SolverBenchError: says what does not fit.
    """
    if spec.pairs is None:
        return
    index, wanted = read_index(Path(spec.pairs)), spec.train_size + spec.validation_size
    if index.state_shape != tuple(backbone.state_shape):
        raise SolverBenchError(
            f"{spec.pairs} holds states of shape {index.state_shape}; those of backbone "
            f"{backbone.name} have {tuple(backbone.state_shape)}"
        )
    if index.condition != kind_of(backbone):
        raise SolverBenchError(
            f"{spec.pairs} is conditioned on {index.condition}, backbone {backbone.name} on "
            f"{kind_of(backbone)}"
        )
    if wanted > index.rows:
        raise SolverBenchError(
            f"{spec.pairs} has {index.rows} rows; train_size + validation_size is {wanted}"
        )


def lesson_pairs(spec: FitSpec, backbone: Backbone, teacher: Tableau) -> tuple[Samples, Samples]:
    """Training pairs, the first rows of the set that a fit names, and validation, the last ones.

    Raises:
        SolverBenchError: for a damaged set, or one that the teacher did not make.
    """
    check_set(spec, backbone)
    folder = Path(spec.pairs or "")
    index = read_index(folder)
    train = read_pairs(folder, backbone, range(spec.train_size))
    last = range(index.rows - spec.validation_size, index.rows)
    validation = read_pairs(folder, backbone, last)
    check_made_by(teacher, backbone, validation, folder)
    return train, validation


def read_pairs(folder: Path, backbone: Backbone, rows: range) -> Samples:
    """Some rows of a set; beyond ``rows.IN_MEMORY`` they stay in its files.

    Args:
        folder: of the set.
        backbone: whose prompts the labels number, for text models.
        rows: a run of row numbers.

    Raises:
        SolverBenchError: for a damaged set, or one of other prompts.
    """
    index = read_index(folder)
    size, parts = index.rows_a_shard, list[tuple[dict[str, Place], range]]()
    for number in range(rows.start // size, -(-rows.stop // size)):
        first = number * size
        part = range(max(rows.start - first, 0), min(rows.stop - first, size))
        parts.append((_examine(folder, index, number, backbone), part))
    noise, states = (
        StoredRows([(places[key], part) for places, part in parts]) for key in ("noise", "states")
    )
    like, condition = backbone.condition([0]), None
    if like is not None:
        labels = [places["labels"].mapped()[part.start : part.stop] for places, part in parts]
        condition = Condition(torch.cat(labels).to(like.labels.device))
    small = stays(len(rows), index.state_shape)
    kept: tuple[Rows, Rows] = (noise[:], states[:]) if small else (noise, states)
    return Samples(rows, *kept, condition, 0.0, 0, 0.0, 0)


def _examine(folder: Path, index: Index, number: int, backbone: Backbone) -> dict[str, Place]:
    """Where the tensors of a shard lie, its checksums verified."""
    path = _shard(folder, number * index.rows_a_shard)
    places, facts = tensorfile.examine(path, FORMAT)
    if sha256_of(path) != index.shards[number]:
        raise SolverBenchError(f"{path} belongs to another set than {folder / INDEX}; import again")
    if facts["prompts"]:
        prompts, labels = prompts_of(backbone), places["labels"].mapped().tolist()
        known = [prompts[label] for label in labels if label < len(prompts)]
        if _digest(known) != facts["prompts"]:
            raise SolverBenchError(
                f"{folder} was imported with other prompts than backbone {backbone.name} has now; "
                "load it with those or import again"
            )
    return places


@torch.no_grad()
def check_made_by(teacher: Tableau, backbone: Backbone, pairs: Samples, folder: Path) -> None:
    """Refuse pairs that a teacher does not make: rows out of order, another network or teacher.

    The first rows are sampled anew. Rounding and other hardware move a state by percents at most,
    a state of another noise lies farther off than its own size.

    Raises:
        SolverBenchError: where most of the rows differ.
    """
    noise = pairs.noise[:NUM_CHECKED].to(backbone.device)
    condition = pairs.condition[:NUM_CHECKED] if pairs.condition is not None else None
    own, given = sample(backbone, teacher, noise, condition).cpu(), pairs.states[:NUM_CHECKED]
    gaps = (own - given).flatten(1).norm(dim=1) / given.flatten(1).norm(dim=1)
    if not float(gaps.median()) <= ALIKE:
        raise SolverBenchError(
            f"{folder} was not made by this recipe's teacher: from the same noise it makes states "
            f"that differ by {float(gaps.median()):.2f} of their size, at most {ALIKE} is allowed. "
            "Its rows are out of order, or it belongs to another network or teacher"
        )
