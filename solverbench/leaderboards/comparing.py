"""Two records, or two folders of them, metric by metric: differences with their errors."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from solverbench.benchmark.results import LEVEL, MetricFacts, Result
from solverbench.benchmark.spec import Model
from solverbench.benchmark.store import Influences, StoredInfluences, read_record, read_records
from solverbench.errors import SolverBenchError
from solverbench.leaderboards.differences import Estimate, Gap, estimate, gap
from solverbench.leaderboards.notes import plugin

Cells = dict[tuple[str, int], dict[str, list[Result]]]  # by backbone and NFE, then by solver


@dataclass(frozen=True)
class Line:
    """One metric of a comparison.

    Attributes:
        metric: plugin name.
        facts: label, direction, decimals.
        a: one side.
        b: the other.
        gap: their difference.
    """

    metric: str
    facts: MetricFacts
    a: Estimate
    b: Estimate
    gap: Gap

    @property
    def better(self) -> str:
        """``A``, ``B``, or empty where they cannot be told apart."""
        if not self.gap.significant:
            return ""
        return "A" if (self.gap.difference > 0) == self.facts.higher_is_better else "B"

    @property
    def verdict(self) -> str:
        """In words."""
        if self.gap.se is None:
            return "no error recorded"
        how = "paired" if self.gap.paired else "unpaired"
        if self.gap.level > LEVEL:  # rests on a few training seeds
            how += f", beyond {self.gap.level:.2f} errors"
        return f"{f'{self.better} better' if self.better else 'not told apart'} ({how})"


@dataclass(frozen=True)
class Comparison:
    """Two cells of one backbone and NFE, each with all its training seeds.

    Attributes:
        a: records of one side.
        b: of the other.
        lines: metrics that both have.
    """

    a: tuple[Result, ...]
    b: tuple[Result, ...]
    lines: tuple[Line, ...]

    def text(self) -> list[str]:
        """What is compared, then a line a metric."""
        spec = self.a[0].spec
        ev = spec.evaluation
        head = [
            f"{plugin(spec.backbone)}, NFE {spec.nfe}, {ev.num_images} images, seeds "
            f"{ev.first_seed} to {ev.first_seed + ev.num_images - 1}",
            f"A: {_about(self.a)}",
            f"B: {_about(self.b)}",
        ]
        rows = [["", "A", "B", "A - B", ""]] + [_row(line) for line in self.lines]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [f"{text:<{width}}" for text, width in zip(row, widths, strict=True)]
            head.append("  ".join(cells).rstrip())
        return head

    def record(self) -> dict[str, object]:
        """JSON values in full precision."""
        spec = self.a[0].spec
        return {
            "backbone": spec.backbone.model_dump(mode="json"),
            "nfe": spec.nfe,
            "evaluation": spec.evaluation.model_dump(mode="json"),
            "a": [r.spec.key() for r in self.a],
            "b": [r.spec.key() for r in self.b],
            "metrics": [
                {
                    "metric": line.metric,
                    "label": line.facts.label,
                    "a": line.a.value,
                    "a_se": line.a.se,
                    "b": line.b.value,
                    "b_se": line.b.se,
                    "difference": line.gap.difference,
                    "se": line.gap.se,
                    "level": line.gap.level,
                    "paired": line.gap.paired,
                    "significant": bool(line.better),
                    "better": line.better,
                }
                for line in self.lines
            ],
        }


def compare(a: Path, b: Path) -> list[Comparison]:
    """Compare two record files, or the cells that two folders of records share.

    Cells belong together by backbone and NFE. Where a folder holds several solvers for one of
    these, they also need equal settings, or at least the solver's name where that is enough.

    Args:
        a: a record or a folder.
        b: likewise.

    Raises:
        SolverBenchError: where a file cannot be read, no cells belong together, or they were
            measured otherwise; one line.
    """
    influences = {path: StoredInfluences(path) for path in (a, b)}
    ours, theirs = (_cells(path) for path in (a, b))
    found = [
        _compared(one, other, (influences[a], influences[b]))
        for key in sorted(ours.keys() & theirs.keys())
        for one, other in _pairs(ours[key], theirs[key])
    ]
    if not found:
        lack = f"{a} has {_listed(ours)}, {b} has {_listed(theirs)}"
        if ours.keys() & theirs.keys():
            lack = f"{a} and {b} hold several solvers, of which none is the same"
        raise SolverBenchError(
            f"nothing to compare: {lack}. Name two records of one backbone and NFE, or folders "
            "that share cells"
        )
    return found


def _cells(path: Path) -> Cells:
    """The records that went well; a folder's failures are no part of a comparison."""
    results = read_records(path) if path.is_dir() else [read_record(path)]
    cells: Cells = {}
    for result in results:
        if result.status == "ok":
            spec = result.spec
            key = (_text(spec.backbone), spec.nfe)
            variant = _text(spec.solver) + _text(spec.schedule) + _text(spec.fit)
            cells.setdefault(key, {}).setdefault(variant, []).append(result)
    if not cells:
        raise SolverBenchError(f"{path} failed: {results[0].reason}. Nothing to compare")
    return cells


def _pairs(
    ours: dict[str, list[Result]], theirs: dict[str, list[Result]]
) -> Iterator[tuple[list[Result], list[Result]]]:
    """What belongs together of one backbone and NFE."""
    if len(ours) == len(theirs) == 1:
        yield from zip(ours.values(), theirs.values(), strict=True)
        return
    for variant in sorted(ours):
        names = [_name(found) for found in ours.values()], [_name(f) for f in theirs.values()]
        name = _name(ours[variant])
        if variant in theirs:
            yield ours[variant], theirs[variant]
        elif all(side.count(name) == 1 for side in names):
            yield ours[variant], next(f for f in theirs.values() if _name(f) == name)


def _name(found: Sequence[Result]) -> tuple[str, str]:
    spec = found[0].spec
    return spec.solver.name, spec.schedule.name if spec.schedule else ""


def _compared(
    a: Sequence[Result], b: Sequence[Result], influences: tuple[Influences, Influences]
) -> Comparison:
    _same_evaluation([*a, *b])
    lines = []
    for name in a[0].metrics:
        sides = [estimate(f, name, i) for f, i in zip((a, b), influences, strict=True)]
        one, other = sides
        if one is not None and other is not None:
            lines.append(Line(name, a[0].metric_facts[name], one, other, gap(one, other)))
    return Comparison(tuple(a), tuple(b), tuple(lines))


def _same_evaluation(results: Sequence[Result]) -> None:
    """Refuse what no difference can be taken of.

    Raises:
        SolverBenchError: names the first thing that differs.
    """
    first = _evaluation(results[0])
    for result in results[1:]:
        for what, value in _evaluation(result).items():
            if what in first and value != first[what]:
                raise SolverBenchError(
                    f"{_about([results[0]])} and {_about([result])} were measured otherwise: "
                    f"{what} {first[what]} and {value}. Compare records of one evaluation"
                )
    if not set.intersection(*(set(r.metrics) for r in results)):
        raise SolverBenchError("these records have no metric in common")


def _evaluation(result: Result) -> dict[str, str]:
    """What must agree; older records say less."""
    spec, made = result.spec, result.provenance
    facts = {
        "protocol": str(spec.version),
        "number of images": str(spec.evaluation.num_images),
        "first seed": str(spec.evaluation.first_seed),
        "teacher": f"{plugin(spec.teacher.solver)} with {spec.teacher.nfe} NFE",
        "weights": made.weights_sha256[:12] or "none",
        "reference": made.reference_sha256[:12] or "none",
    }
    one = result.measurement
    if one is not None:
        facts["extractor"] = f"{one.extractor} ({one.extractor_sha256[:12] or 'none'})"
        facts["extraction"] = (
            f"{one.resize}, {one.precision}, batch {one.batch}, {one.quantisation}"
        )
    return facts


def _about(found: Sequence[Result]) -> str:
    """Title, plugin and training seeds."""
    spec = found[0].spec
    seeds = ", ".join(str(r.spec.seed) for r in found)
    return f"{found[0].title}, {plugin(spec.solver)}" + (
        f", training seeds {seeds}" if spec.fit else ""
    )


def _row(line: Line) -> list[str]:
    """One metric, rounded."""
    digits, facts = line.facts.digits, line.facts
    values = [
        f"{e.value:.{digits}f}" + (f" ± {e.se:.{digits}f}" if e.se is not None else "")
        for e in (line.a, line.b)
    ]
    error = "" if line.gap.se is None else f" ± {line.gap.se:.2g}"
    better = "higher" if facts.higher_is_better else "lower"
    difference = f"{line.gap.difference:+.3g}{error}"
    return [f"{facts.label} ({better} is better)", *values, difference, line.verdict]


def _listed(cells: Cells) -> str:
    """Backbones and NFE of a side, in short."""
    found = {f"{json.loads(backbone)['name']} NFE {nfe}" for backbone, nfe in cells}
    return ", ".join(sorted(found))


def _text(model: Model | None) -> str:
    """Canonical JSON."""
    return json.dumps(model.model_dump(mode="json"), sort_keys=True) if model else ""
