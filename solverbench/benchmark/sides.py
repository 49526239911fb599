"""The two things that are compared: folders of images, files of features, references."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from solverbench import registry, tensorfile
from solverbench.benchmark import feature_cache
from solverbench.benchmark.features import extracted, ready
from solverbench.benchmark.folders import ImageFolder, file_digests, open_folder
from solverbench.benchmark.metrics.base import as_rows
from solverbench.benchmark.metrics.neighbours import MAX_MEMORY, Convention, K
from solverbench.benchmark.metrics.statistics import read_features, read_statistics
from solverbench.errors import SolverBenchError
from solverbench.files import sha256_of
from solverbench.images import INCEPTION_2015, Extractor, Moments, Statistics, moments

ROWS = ("features", "embedding")  # names of rows in a safetensors file


@dataclass(frozen=True)
class Choice:
    """How to measure.

    Attributes:
        extractor: registered name; that of the reference, where it has one, by default. Files that
            name none are taken as made by it.
        options: of the extractor's constructor.
        metrics: names; all that the two sides allow by default.
        num: images to take of each folder; all by default.
        seed: of the subset.
        lossy: whether lossy images are read.
        k: neighbours.
        convention: whether a ball's surface belongs to it.
        max_memory: bytes beside the features.
        cache: whether features of folders are kept between runs.
        unequal: whether metrics of neighbours keep unequal numbers of rows.
        blocks: disjoint blocks of generated rows to measure too; none for 0.
    """

    extractor: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    num: int | None = None
    seed: int = 0
    lossy: bool = False
    k: int = K
    convention: Convention = "prdc"
    max_memory: int = MAX_MEMORY
    cache: bool = True
    unequal: bool = False
    blocks: int = 0


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two things compared.

    Attributes:
        about: what it is.
        rows: features (M, D), where there are any.
        moments: of the rows, or of more than them.
        extractor: whose features; empty where a file does not say.
        sha256: of the file, or of all files of a folder.
        notes: how it was chosen.
        size: height and width of its images, where it has any.
        own: whether an extractor brought it; its rows have no order then.
    """

    about: str
    rows: Tensor | None
    moments: Moments | None
    extractor: str
    sha256: str
    notes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    own: bool = False


def both_sides(
    generated: str, reference: str, choice: Choice
) -> tuple[Side, Side, Extractor | None]:
    """What is measured, what it is compared with, and the extractor where one ran.

    Raises:
        SolverBenchError: for what cannot be compared; says what to do.
        ValueError: likewise.
    """
    extractor = _extractor(generated, reference, choice)
    x = side_of(generated, extractor, choice)
    y = _own_reference(reference, extractor, choice) if _named(reference) else None
    y = y or side_of(reference, extractor, choice)
    x, y = (_vouched(side, extractor, choice) for side in (x, y))
    names = {x.extractor, y.extractor} - {""}
    if len(names) > 1 and not names <= INCEPTION_2015:
        raise SolverBenchError(
            f"features of {x.extractor} cannot be compared with those of {y.extractor}; use one "
            "extractor for both sides"
        )
    return x, y, extractor


def images_of(folder: Path, extractor: Extractor, choice: Choice) -> Side:
    """Features of a folder of images.

    Raises:
        SolverBenchError: for a folder or images that cannot be used.
    """
    channels = extractor.traits.channels
    found = open_folder(
        folder, channels=channels, lossy=choice.lossy, num=choice.num, seed=choice.seed
    )
    if len(found.paths) < 2:
        raise SolverBenchError(f"{folder} holds one image; at least two are needed")
    rows = _rows(found, extractor, choice.cache)
    digest = hashlib.sha256("".join(found.digests).encode()).hexdigest()
    kept = Statistics().update(rows).moments(extractor.name)
    about = f"{len(rows)} images of {folder}"
    return Side(about, rows, kept, extractor.name, digest, tuple(found.notes), found.size)


def side_of(where: str, extractor: Extractor | None, choice: Choice) -> Side:
    """A folder or a file.

    Raises:
        SolverBenchError: for another kind of file, or one that cannot be used.
    """
    path = Path(where)
    if path.is_dir():
        assert extractor is not None
        return images_of(path, extractor, choice)
    if path.suffix == ".npz":
        return _archive(path)
    if path.suffix == ".safetensors":
        return _tensors(path)
    raise SolverBenchError(
        f"{where} is no folder of images and no file of features or statistics (.npz, .safetensors)"
    )


def _named(reference: str) -> bool:
    """Whether it is an extractor, also where a folder has that name."""
    return reference in registry.extractors.names()


def _extractor(generated: str, reference: str, choice: Choice) -> Extractor | None:
    """The one asked for, else that of the reference; None where both sides are files."""
    if not Path(generated).exists():
        raise SolverBenchError(f"there is no file or folder {generated}")
    named = _named(reference)
    if not named and not Path(reference).exists():
        raise SolverBenchError(
            f"{reference} is neither a file, nor a folder, nor an extractor; see solverbench list "
            "extractors"
        )
    folders = [where for where in (generated, reference) if Path(where).is_dir()]
    if choice.extractor:
        registry.extractors.get(choice.extractor)
    if not folders and not named:
        return None
    name = choice.extractor or (reference if named else "")
    if not name and not Path(reference).is_dir() and Path(reference).suffix == ".npz":
        name = _archive(Path(reference)).extractor
    if not name:
        raise SolverBenchError(
            f"{folders[0]} is a folder of images: name the extractor with --extractor"
        )
    return ready(name, **choice.options)


def _own_reference(where: str, extractor: Extractor | None, choice: Choice) -> Side:
    """What an extractor brings with it."""
    if extractor is None or choice.extractor not in (None, where):
        extractor = ready(where, **choice.options)
    found = extractor.reference()
    rows = found.features.embedding if found.features else None
    about = f"{where}: {found.about}"
    notes: tuple[str, ...] = ()
    if Path(where).exists():
        notes = (f"reference: {where} is the extractor; write ./{where} for the folder or file",)
    return Side(about, rows, found.embedding, extractor.name, found.sha256, notes, own=True)


def _archive(path: Path) -> Side:
    """Statistics, features or both."""
    rows = read_features(path)
    try:
        kept = read_statistics(path)
    except SolverBenchError:
        if rows is None:
            raise
        kept = moments(rows)
    return Side(str(path), rows, kept, kept.extractor, sha256_of(path))


def _tensors(path: Path) -> Side:
    tensors, head = tensorfile.read_plain(path)
    rows = next((tensors[key] for key in ROWS if key in tensors), None)
    if rows is None:
        raise SolverBenchError(f"{path} holds no tensor named {' or '.join(ROWS)}")
    try:
        rows = as_rows(rows)
    except ValueError as error:
        raise SolverBenchError(f"{path} holds no usable features: {error}") from error
    return Side(str(path), rows, moments(rows), head.get("extractor", ""), sha256_of(path))


def _vouched(side: Side, extractor: Extractor | None, choice: Choice) -> Side:
    """A file that names no extractor is of the one the user named; of an unknown one else."""
    if side.extractor:
        return side
    if not choice.extractor:
        why = f"{side.about} names no extractor: labels say unknown; --extractor tells it"
        return replace(side, notes=(*side.notes, why))
    if extractor is None:
        extractor = registry.extractors.get(choice.extractor)(**choice.options)
    why = f"{side.about} names no extractor: taken as {extractor.name}, as --extractor says"
    return replace(side, extractor=extractor.name, notes=(*side.notes, why))


def _rows(images: ImageFolder, extractor: Extractor, cache: bool) -> Tensor:
    """Embeddings of a folder, from the cache where they are there."""
    rule = "lossy" if images.lossy else "none"
    if cache:
        digests = file_digests(images.paths)
        kept = feature_cache.load(feature_cache.key_of(extractor, digests, rule))
        if kept is not None:
            images.first()
            images.digests = digests
            return kept["embedding"]
    try:
        rows = extracted(extractor, images.parts())
    except ValueError as error:
        height, width = images.size or (0, 0)
        wanted = str(error).partition("; got")[0]
        raise SolverBenchError(
            f"{images.folder} has images of {width} x {height} pixels: {wanted}"
        ) from error
    if cache:
        feature_cache.store(feature_cache.key_of(extractor, images.digests, rule), rows)
    return rows["embedding"]
