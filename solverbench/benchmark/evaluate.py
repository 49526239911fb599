"""Measuring images or features that no solver of ours made."""

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverbench import registry, tensorfile
from solverbench.benchmark import feature_cache
from solverbench.benchmark.features import extracted, ready
from solverbench.benchmark.folders import ImageFolder, file_digests, open_folder
from solverbench.benchmark.metrics.base import FLAGS, Measured
from solverbench.benchmark.metrics.cmmd import cmmd
from solverbench.benchmark.metrics.frechet import frechet_distance
from solverbench.benchmark.metrics.kernel import kernel_distance
from solverbench.benchmark.metrics.mind import mind
from solverbench.benchmark.metrics.neighbours import MAX_MEMORY, Convention, K, neighbour_metrics
from solverbench.benchmark.metrics.repeats import half_split
from solverbench.benchmark.metrics.statistics import (
    read_features,
    read_statistics,
    write_statistics,
)
from solverbench.errors import SolverBenchError, unknown_name
from solverbench.files import sha256_of
from solverbench.images import INCEPTION_2015, Extractor, Moments, Statistics, check, moments

NEIGHBOURS = ("precision", "recall", "density", "coverage")
DEFAULTS = ("fd", *NEIGHBOURS, "kid", "mind")
METRICS = (*DEFAULTS, "fd-half-split", "cmmd")
FROM_MOMENTS = ("fd",)  # needs no rows on either side
ROWS = ("features", "embedding")  # names of rows in a safetensors file


@dataclass(frozen=True)
class Choice:
    """How to measure.

    Attributes:
        extractor: registered name; that of the reference, where it has one, by default.
        options: of the extractor's constructor.
        metrics: names; all that the two sides allow by default.
        num: images to take of each folder; all by default.
        seed: of the subset.
        lossy: whether lossy images are read.
        k: neighbours.
        convention: whether a ball's surface belongs to it.
        max_memory: bytes beside the features.
        cache: whether features of folders are kept between runs.
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
    """

    about: str
    rows: Tensor | None
    moments: Moments | None
    extractor: str
    sha256: str
    notes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        values: by metric.
        labels: how tables call each.
        absent: default metrics that the sides do not allow, and why.
        facts: what a record holds beside them.
        notes: one line each.
    """

    values: Mapping[str, Measured]
    labels: Mapping[str, str]
    absent: Mapping[str, str]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """JSON values in full precision."""
        metrics = [
            {
                "metric": name,
                "label": self.labels[name],
                "value": found.value,
                "se": found.se,
                "se_method": found.se_method,
                "num_generated": found.num_generated,
                "num_reference": found.num_reference,
                "dim": found.dim,
                "flags": list(found.flags),
                **found.facts,
            }
            for name, found in self.values.items()
        ]
        more = {"absent": dict(self.absent), "warnings": list(self.notes)}
        return {"metrics": metrics, **self.facts, **more}


def evaluate(generated: str, reference: str, choice: Choice | None = None) -> Evaluation:
    """Measure images or features.

    Args:
        generated: a folder of images, or a file of features or statistics (npz, safetensors).
        reference: likewise, or the name of an extractor that has a reference of its own.
        choice: how.

    Raises:
        SolverBenchError: for what cannot be compared; says what to do.
    """
    choice, start = choice or Choice(), time.perf_counter()
    for name in choice.metrics:
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS, f"{', '.join(METRICS)}")
    extractor = _extractor(generated, reference, choice)
    try:
        x, y = (_side(where, extractor, choice) for where in (generated, reference))
        name = _common(x, y)
        values, absent = _measure(x, y, choice)
    except ValueError as error:
        raise SolverBenchError(str(error)) from error
    facts = {
        "generated": {"name": x.about, "sha256": x.sha256, "image_size": x.size},
        "reference": {"name": y.about, "sha256": y.sha256, "image_size": y.size},
        "extractor": _about_extractor(name, extractor),
        "quantisation": "none: 8-bit files or features as they are",
        "versions": {"solverbench": version("solverbench"), "torch": torch.__version__},
        "seconds": time.perf_counter() - start,
    }
    labels = {metric: _label(metric, name) for metric in values}
    return Evaluation(values, labels, absent, facts, _notes(x, y))


def make_reference(folder: Path, out: Path, choice: Choice, features: bool) -> Side:
    """Write the statistics of a folder of images, with their features where asked.

    Raises:
        SolverBenchError: for a folder or an extractor that cannot be used, or a file that cannot be
            written.
    """
    if out.suffix != ".npz":
        raise SolverBenchError(f"{out} must end in .npz")
    if choice.extractor is None:
        raise SolverBenchError("name the extractor with --extractor")
    try:
        side = _images(folder, ready(choice.extractor, **choice.options), choice)
        assert side.moments is not None
        write_statistics(out, side.moments, side.rows if features else None)
    except ValueError as error:
        raise SolverBenchError(str(error)) from error
    return side


def lines(found: Evaluation) -> list[str]:
    """The evaluation as text: a line a metric, then how it was made."""
    labels = {n: found.labels[n] + (" x1000" if n == "kid" else "") for n in found.values}
    width, shown = max(map(len, labels.values())), []
    for name, value in found.values.items():
        scale = 1000 if name == "kid" else 1
        error = f" +- {scale * value.se:.2g}" if value.se is not None else ""
        more = f"  (ceiling {value.facts['ceiling']:.3f})" if "ceiling" in value.facts else ""
        shown.append(f"{labels[name]:<{width}}  {scale * value.value:.4g}{error}{more}")
    flags = dict.fromkeys(flag for value in found.values.values() for flag in value.flags)
    for flag in flags:
        names = [found.labels[n] for n, value in found.values.items() if flag in value.flags]
        shown.append(f"{', '.join(names)}: {FLAGS.get(flag, flag.replace('_', ' '))}")
    for why in dict.fromkeys(found.absent.values()):
        names = [name for name, reason in found.absent.items() if reason == why]
        shown.append(f"absent: {', '.join(names)}: {why}")
    return [*shown, *found.notes]


def _extractor(generated: str, reference: str, choice: Choice) -> Extractor | None:
    """The one asked for, else that of the reference; None where both sides are files."""
    if not Path(generated).exists():
        raise SolverBenchError(f"there is no file or folder {generated}")
    named = not Path(reference).exists()
    if named and reference not in registry.extractors.names():
        raise SolverBenchError(
            f"{reference} is neither a file, nor a folder, nor an extractor; see solverbench list "
            "extractors"
        )
    folders = [where for where in (generated, reference) if Path(where).is_dir()]
    name = choice.extractor or (reference if named else "")
    if not folders and not named:
        return None
    if not name and not Path(reference).is_dir() and Path(reference).suffix == ".npz":
        name = _archive(Path(reference)).extractor
    if not name:
        raise SolverBenchError(
            f"{folders[0]} is a folder of images: name the extractor with --extractor"
        )
    return ready(name, **choice.options)


def _side(where: str, extractor: Extractor | None, choice: Choice) -> Side:
    path = Path(where)
    if path.is_dir():
        assert extractor is not None
        return _images(path, extractor, choice)
    if not path.exists():
        return _own_reference(where, extractor, choice)
    if path.suffix == ".npz":
        return _archive(path)
    if path.suffix == ".safetensors":
        tensors, head = tensorfile.read_plain(path)
        rows = next((tensors[key] for key in ROWS if key in tensors), None)
        if rows is None:
            raise SolverBenchError(f"{path} holds no tensor named {' or '.join(ROWS)}")
        rows = check(rows if rows.is_floating_point() else rows.double())
        return Side(where, rows, moments(rows), head.get("extractor", ""), sha256_of(path))
    raise SolverBenchError(
        f"{where} is no folder of images and no file of features or statistics (.npz, .safetensors)"
    )


def _own_reference(where: str, extractor: Extractor | None, choice: Choice) -> Side:
    """What an extractor brings with it."""
    if extractor is None or choice.extractor not in (None, where):
        extractor = ready(where, **choice.options)
    found = extractor.reference()
    rows = found.features.embedding if found.features else None
    return Side(f"{where}: {found.about}", rows, found.embedding, extractor.name, found.sha256)


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


def _images(folder: Path, extractor: Extractor, choice: Choice) -> Side:
    channels = extractor.traits.channels
    found = open_folder(
        folder, channels=channels, lossy=choice.lossy, num=choice.num, seed=choice.seed
    )
    rows = _rows(found, extractor, choice.cache)
    digest = hashlib.sha256("".join(found.digests).encode()).hexdigest()
    kept = Statistics().update(rows).moments(extractor.name)
    about = f"{len(rows)} images of {folder}"
    return Side(about, rows, kept, extractor.name, digest, tuple(found.notes), found.size)


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
    rows = extracted(extractor, images.parts())
    if cache:
        feature_cache.store(feature_cache.key_of(extractor, images.digests, rule), rows)
    return rows["embedding"]


def _common(x: Side, y: Side) -> str:
    """The extractor of both sides; empty where neither says."""
    names = {x.extractor, y.extractor} - {""}
    if len(names) > 1 and not names <= INCEPTION_2015:
        raise SolverBenchError(
            f"features of {x.extractor} cannot be compared with those of {y.extractor}; use one "
            "extractor for both sides"
        )
    return x.extractor or y.extractor


def _measure(x: Side, y: Side, choice: Choice) -> tuple[dict[str, Measured], dict[str, str]]:
    names, absent = choice.metrics or DEFAULTS, dict[str, str]()
    poor = [side.about for side in (x, y) if side.rows is None]
    if poor:
        why = f"needs feature rows, and {poor[0]} holds statistics alone"
        refused = [name for name in names if name not in FROM_MOMENTS]
        if refused and choice.metrics:
            raise SolverBenchError(f"{refused[0]} {why}")
        absent = dict.fromkeys(refused, why)
    found = dict[str, Measured]()
    wanted = [name for name in names if name not in absent]
    if set(wanted) & set(NEIGHBOURS):
        found = _neighbours(x, y, choice)
    found |= {name: _single(name, x, y) for name in wanted if name not in NEIGHBOURS}
    return {name: found[name] for name in wanted}, absent


def _single(name: str, x: Side, y: Side) -> Measured:
    """A metric that is a function of its own."""
    generated = x.moments if x.rows is None else x.rows
    reference = y.rows if y.moments is None else y.moments
    assert generated is not None
    assert reference is not None
    if name == "fd":
        return frechet_distance(generated=generated, reference=reference)
    assert x.rows is not None
    assert y.rows is not None
    if name == "fd-half-split":
        return half_split(generated=x.rows, reference=reference)
    if name == "kid":
        return kernel_distance(generated=x.rows, reference=y.rows)
    return (mind if name == "mind" else cmmd)(generated=x.rows, reference=y.rows)


def _neighbours(x: Side, y: Side, choice: Choice) -> dict[str, Measured]:
    assert x.rows is not None
    assert y.rows is not None
    shares, filled = neighbour_metrics(
        generated=x.rows,
        reference=y.rows,
        k=choice.k,
        convention=choice.convention,
        max_memory=choice.max_memory,
    )
    return {
        "precision": shares.precision,
        "recall": shares.recall,
        "density": filled.density,
        "coverage": filled.coverage,
    }


def _label(metric: str, extractor: str) -> str:
    """How tables call a metric; FID and KID for the 2015 Inception alone."""
    inception = extractor in INCEPTION_2015
    of = f"[{extractor or 'unknown'}]"
    words = {
        "fd": "FID" if inception else f"FD{of}",
        "fd-half-split": ("FID" if inception else f"FD{of}") + ", half split",
        "kid": "KID" if inception else f"KD{of}",
        "cmmd": "CMMD" if extractor == "clip-vit-l-14-336" else f"MMD{of}",
    }
    return words.get(metric, f"{metric.upper() if metric == 'mind' else metric}{of}")


def _about_extractor(name: str, extractor: Extractor | None) -> dict[str, Any]:
    if extractor is None:
        return {"name": name}
    traits = extractor.traits._asdict()
    return {"name": name, "weights_sha256": extractor.sha256, **traits}


def _notes(x: Side, y: Side) -> tuple[str, ...]:
    """How both sides were chosen."""
    sizes: Iterable[str] = ()
    if x.size and y.size and x.size != y.size:
        sizes = [f"images of {x.size} and {y.size} pixels are compared: resizing adds a difference"]
    return (f"generated: {x.about}", f"reference: {y.about}", *x.notes, *y.notes, *sizes)
