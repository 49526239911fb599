"""Measuring images or features that no solver of ours made."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from solverbench.benchmark.features import ready
from solverbench.benchmark.measuring import METRICS, NEIGHBOURS, allowed, measure, over_blocks
from solverbench.benchmark.metrics.base import FLAGS, Measured
from solverbench.benchmark.metrics.repeats import Repeats
from solverbench.benchmark.metrics.statistics import write_statistics
from solverbench.benchmark.sides import Choice, Side, both_sides, images_of
from solverbench.errors import SolverBenchError, unknown_name
from solverbench.images import INCEPTION_2015, Extractor


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        values: by metric.
        labels: how tables call each.
        absent: default metrics that the sides do not allow, and why.
        facts: what a record holds beside them.
        notes: one line each.
        repeats: by metric, over blocks of generated rows, where they were asked for.
    """

    values: Mapping[str, Measured]
    labels: Mapping[str, str]
    absent: Mapping[str, str]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]
    repeats: Mapping[str, Repeats] = field(default_factory=dict)

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
                **({"blocks": _blocks(self.repeats[name])} if name in self.repeats else {}),
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
    try:
        x, y, extractor = both_sides(generated, reference, choice)
        names, absent = allowed(x, y, choice)
        values = measure(names, x, y, choice)
        repeats = over_blocks(names, x, y, choice) if choice.blocks else {}
    except ValueError as error:
        raise SolverBenchError(str(error)) from error
    name = x.extractor if x.extractor and y.extractor else ""
    facts = {
        "generated": {"name": x.about, "sha256": x.sha256, "image_size": x.size},
        "reference": {"name": y.about, "sha256": y.sha256, "image_size": y.size},
        "extractor": _about_extractor(name, extractor),
        "quantisation": "none: 8-bit files or features as they are",
        "versions": {"solverbench": version("solverbench"), "torch": torch.__version__},
        "seconds": time.perf_counter() - start,
    }
    labels = {metric: _label(metric, name) for metric in values}
    return Evaluation(values, labels, absent, facts, (*_notes(x, y), *_cut(values, x, y)), repeats)


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
        side = images_of(folder, ready(choice.extractor, **choice.options), choice)
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
    for name, over in found.repeats.items():
        shown.append(_spread(found.labels[name], over, 1000 if name == "kid" else 1))
    flags = dict.fromkeys(flag for value in found.values.values() for flag in value.flags)
    for flag in flags:
        names = [found.labels[n] for n, value in found.values.items() if flag in value.flags]
        shown.append(f"{', '.join(names)}: {FLAGS.get(flag, flag.replace('_', ' '))}")
    for why in dict.fromkeys(found.absent.values()):
        names = [name for name, reason in found.absent.items() if reason == why]
        shown.append(f"absent: {', '.join(names)}: {why}")
    return [*shown, *found.notes]


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


def _cut(values: Mapping[str, Measured], x: Side, y: Side) -> list[str]:
    """That metrics of neighbours used fewer rows than there are."""
    names = [name for name in NEIGHBOURS if name in values]
    if not names or x.rows is None or y.rows is None or len(x.rows) == len(y.rows):
        return []
    used = values[names[0]].num_generated, values[names[0]].num_reference
    if used == (len(x.rows), len(y.rows)):
        return []
    rows = "first rows" if len(x.rows) > used[0] or y.own else "rows drawn at random"
    larger = "generated" if len(x.rows) > used[0] else "reference"
    return [
        f"{', '.join(names)}: {used[0]} rows a side, {rows} of the {larger} one; "
        "--unequal keeps all"
    ]


def _blocks(over: Repeats) -> dict[str, Any]:
    """Numbers of a record."""
    return {
        "num": len(over.blocks),
        "rows": over.blocks[0].num_generated,
        "values": [block.value for block in over.blocks],
        "mean": over.mean,
        "sd": over.sd,
        "se": over.se,
        over.minimum_label: over.minimum,
    }


def _spread(label: str, over: Repeats, scale: int) -> str:
    mean, sd, least = (scale * value for value in (over.mean, over.sd, over.minimum))
    rows = over.blocks[0].num_generated
    return (
        f"{label}{' x1000' if scale > 1 else ''}, {len(over.blocks)} blocks of {rows} rows: mean "
        f"{mean:.4g}, sd {sd:.2g}, {over.minimum_label}: {least:.4g}"
    )
