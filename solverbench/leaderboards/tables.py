"""Records to typed tables: which rows, which columns, which cell is best. Nothing is rounded."""

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from solverbench.baselines.published import Published
from solverbench.benchmark.results import Cost, MetricFacts, Result
from solverbench.benchmark.spec import EXACT, Model, RunSpec, Value
from solverbench.benchmark.store import Influences
from solverbench.leaderboards.differences import Estimate, estimate, no_influences, ranks

COST_FIELDS: dict[str, Callable[[Cost], float]] = {
    "s/image": lambda cost: cost.seconds_per_image,
    "decode s/image": lambda cost: cost.decode_seconds_per_image,
    "peak MiB": lambda cost: cost.peak_bytes / 2**20,
    "NFE measured": lambda cost: cost.nfe,
    "network rows": lambda cost: cost.network_rows,
    "fit s": lambda cost: cost.fit_seconds,
    "fit peak MiB": lambda cost: cost.fit_peak_bytes / 2**20,
    "fit rows": lambda cost: cost.fit_network_rows,
    "pairs": lambda cost: cost.fit_pairs,
    "trained numbers": lambda cost: cost.num_parameters,
}


@dataclass(frozen=True)
class Cell:
    """A solver at one NFE, all its training seeds together.

    Attributes:
        values: one for each seed that succeeded, full precision.
        status: ``ok``, or the worst status if no seed has a value.
        faults: ``status (seed 1): reason`` for each seed that did not succeed.
        published: what a paper reports for this cell; None if nothing.
        rank: 1 better than every other of its column, 2 underlined, as ``differences.ranks`` has
            it; 0 else, and for the teacher.
        estimate: the values with what is known of their errors; None where there are none.
    """

    values: tuple[float, ...]
    status: str
    faults: tuple[str, ...] = ()
    published: Published | None = None
    rank: int = 0
    estimate: Estimate | None = None

    @property
    def mean(self) -> float | None:
        """Over seeds; None if no seed has a value."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def error(self) -> float | None:
        """What stands behind ``±``: ``std`` of several seeds, the standard error of one."""
        alone = self.estimate.se if self.estimate and len(self.values) == 1 else None
        return alone if self.std is None else self.std


@dataclass(frozen=True)
class Row:
    """A solver with its options; ``cells`` by NFE. A view repeats cells of other rows."""

    title: str
    cells: dict[int, Cell]
    is_teacher: bool = False
    is_view: bool = False


@dataclass(frozen=True)
class Table:
    """One metric of one group of records.

    Attributes:
        metric: plugin name.
        facts: label, direction, decimals, convention.
        nfes: columns, ascending; the teacher has none of its own.
        rows: training-free solvers, learned ones, then the teacher.
    """

    metric: str
    facts: MetricFacts
    nfes: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def has_published(self) -> frozenset[int]:
        """The columns with a published value."""
        return frozenset(n for n in self.nfes if any(r.cells[n].published for r in self.students))

    @property
    def students(self) -> tuple[Row, ...]:
        """All rows but the teacher's; each has a cell for every column, empty if never run."""
        return tuple(row for row in self.rows if not row.is_teacher)


@dataclass(frozen=True)
class Series:
    """The records of one solver with its options, teacher or not, in one group.

    Attributes:
        name: as papers write it.
        results: by NFE and seed.
        is_teacher: whether these are of the reference run.
        settings: in which it differs from rows of the same name.
    """

    name: str
    results: tuple[Result, ...]
    is_teacher: bool
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name and settings, for example ``UniPC (3M) [variant=bh1]``."""
        return self.titled(self.settings)

    def titled(self, settings: Mapping[str, str]) -> str:
        """The name with some settings behind it."""
        label = ", ".join(f"{key}={value}" for key, value in settings.items())
        return f"{self.name} [{label}]" if label else self.name

    def at(self, nfe: int) -> tuple[Result, ...]:
        """The records at one NFE, by seed."""
        return tuple(r for r in self.results if r.spec.nfe == nfe)

    @property
    def nfes(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(sorted({r.spec.nfe for r in self.results}))


def split(results: Iterable[Result]) -> list[tuple[Result, ...]]:
    """Groups that may share a table: same protocol, backbone with options, teacher, evaluation.

    Of two records of one cell the newer is kept. Groups are ordered by backbone and size.
    """
    newest: dict[str, Result] = {}
    for result in sorted(results, key=lambda r: r.provenance.created):
        newest[result.spec.key()] = result
    groups: dict[str, list[Result]] = {}
    for result in newest.values():
        groups.setdefault(_shared(result.spec), []).append(result)
    ordered = sorted(groups.values(), key=lambda group: _shared(group[0].spec))
    return [tuple(sorted(group, key=_order)) for group in ordered]


def series(group: Sequence[Result]) -> list[Series]:
    """The rows of every table of a group: titles with what tells variants of a solver apart.

    Raises:
        ValueError: if the records may not share a table; ``split`` them first.
    """
    if len({_shared(r.spec) for r in group}) != 1:
        raise ValueError("records of other protocols or backbones, or none at all; split() them")
    variants: dict[tuple[bool, str], list[Result]] = {}
    for result in sorted(group, key=_order):
        spec = result.spec
        variants.setdefault((spec.is_teacher, _variant(spec)), []).append(result)
    students = [tuple(rs) for (teacher, _), rs in variants.items() if not teacher]
    names = [_title(found) for found in students]
    rows = [
        Series(name, found, False, settings)
        for name, found, settings in zip(names, students, differ(names, students), strict=True)
    ]
    for (teacher, _), found in variants.items():
        if teacher:
            spec = found[0].spec
            told = {} if spec.network == EXACT else {"network": str(spec.network)}
            name = f"Teacher ({_title(found)}, {spec.nfe} NFE)"
            rows.append(Series(name, tuple(found), True, told))
    return rows


def metric_names(group: Iterable[Result]) -> list[str]:
    """The metrics asked for or present, ``fd`` and ``fid`` first."""
    names: dict[str, None] = {}
    for result in group:
        names |= dict.fromkeys(result.spec.evaluation.metrics) | dict.fromkeys(result.metrics)
    return sorted(names, key=lambda name: name not in ("fd", "fid"))


def build(
    results: Sequence[Result],
    metric: str,
    published: Sequence[Published] = (),
    influences: Influences = no_influences,
) -> Table:
    """The table of one metric.

    Args:
        results: one group of ``split``.
        metric: plugin name.
        published: values to set beside the reproduced ones where both are of the same backbone,
            solver, NFE and metric, and no option known from the paper differs.
        influences: what lies beside the records, for paired tests.

    Raises:
        ValueError: if the records may not share a table.
    """
    found = series(results)
    nfes = sorted({n for s in found if not s.is_teacher for n in s.nfes})
    rows = []
    for s in found:
        columns = s.nfes if s.is_teacher else nfes
        cells = {n: _cell(s.at(n), metric, published, influences) for n in columns}
        rows.append(Row(s.title, cells, s.is_teacher))
    facts = [r.metric_facts[metric] for r in results if metric in r.metric_facts]
    about = facts[0] if facts else MetricFacts(label=metric, higher_is_better=False)
    return Table(metric, about, tuple(nfes), tuple(_rank(rows, nfes, about.higher_is_better)))


def _cell(
    found: Sequence[Result],
    metric: str,
    published: Sequence[Published],
    influences: Influences,
) -> Cell:
    """One cell from the records of its seeds; none at all is an empty cell."""
    if not found:
        return Cell((), "")
    values = tuple(r.metrics[metric] for r in found if r.status == "ok" and metric in r.metrics)
    bad = [r for r in found if r.status != "ok"]
    faults = tuple(f"{r.status} (seed {r.spec.seed}): {r.reason or 'no reason'}" for r in bad)
    status = "ok" if values else min((r.status for r in bad), default="n/a")
    paper = next((p for p in published if matches(p, found[0], metric)), None)
    return Cell(values, status, faults, paper, 0, estimate(found, metric, influences))


def matches(paper: Published, result: Result, metric: str) -> bool:
    """Whether a published value is of the cell of a record.

    Args:
        paper: the value.
        result: the record.
        metric: one of the record's; ``fd`` by the 2015 Inception is what papers call FID.
    """
    spec, conventions = result.spec, result.conventions | result.spec.solver.options
    facts = result.metric_facts.get(metric)
    name = "fid" if facts is not None and facts.label == "FID" else metric
    same = (paper.backbone, paper.nfe, paper.metric) == (spec.backbone.name, spec.nfe, name)
    if "teacher" in paper.flags:
        return same and spec.is_teacher
    agrees = all(conventions.get(key, value) == value for key, value in paper.options.items())
    schedule = spec.schedule.name if spec.schedule else None
    ours = (spec.is_teacher, spec.solver.name, schedule) == (False, paper.solver, paper.schedule)
    return same and ours and agrees


def _rank(rows: Sequence[Row], nfes: Sequence[int], higher_is_better: bool) -> list[Row]:
    """Mark what stands out in each column. The teacher is not ranked."""
    ranked = [replace(row, cells=dict(row.cells)) for row in rows]
    students = {i: row for i, row in enumerate(ranked) if not row.is_teacher}
    for nfe in nfes:
        found = {i: e for i, row in students.items() if (e := row.cells[nfe].estimate)}
        for i, rank in ranks(found, higher_is_better).items():
            students[i].cells[nfe] = replace(students[i].cells[nfe], rank=rank)
    return ranked


def _shared(spec: RunSpec) -> str:
    """What all rows of a table have in common, as text that sorts."""
    parts = (spec.backbone, spec.teacher, spec.evaluation)
    return f"{spec.version} " + " ".join(_text(part) for part in parts)


def _order(result: Result) -> tuple[bool, str, str, int, int]:
    """Training-free first, then by title; within a row by NFE and seed."""
    spec = result.spec
    return spec.fit is not None, result.title.casefold(), _variant(spec), spec.nfe, spec.seed


def _variant(spec: RunSpec) -> str:
    """What all records of a row have in common, as text that sorts."""
    network = None if spec.network == EXACT else spec.network
    return _text(spec.solver) + _text(spec.schedule) + _text(spec.fit) + _text(network)


def _title(found: Sequence[Result]) -> str:
    """The title of the first record that succeeded; a failed one may not know it."""
    return next((r.title for r in found if r.status == "ok"), found[0].title)


def differ(names: Sequence[str], variants: Sequence[Sequence[Result]]) -> Iterator[dict[str, str]]:
    """Of each row the settings in which rows of its name differ."""
    for name, own in zip(names, variants, strict=True):
        rivals = [found for other, found in zip(names, variants, strict=True) if other == name]
        keys = dict.fromkeys(key for found in rivals for key in _asked(found[0].spec))
        told = [k for k in keys if len({setting(found, k) for found in rivals}) > 1]
        yield {key: setting(own, key) for key in told}


def _asked(spec: RunSpec) -> dict[str, Value]:
    """What the spec says of the solver: name, options, schedule optimiser, budget."""
    fit = spec.fit.model_dump() if spec.fit else {}
    budget: dict[str, Value] = {f"fit.{key}": value for key, value in fit.items()}
    times: dict[str, Value] = {"optimiser": spec.schedule.name if spec.schedule else "none"}
    if spec.schedule:
        times |= {f"optimiser.{key}": value for key, value in spec.schedule.options.items()}
    network: dict[str, Value] = {"network": str(spec.network)}
    return {"solver": spec.solver.name} | spec.solver.options | times | budget | network


def setting(found: Sequence[Result], key: str) -> str:
    """A setting of a row as asked for, or else as a record says that it was used."""
    used = next((u[key] for r in found if key in (u := _used(r))), "default")
    return str(_asked(found[0].spec).get(key, used))


def _used(result: Result) -> dict[str, Value]:
    """What a record says of its settings, under the keys of ``_asked``."""
    times = result.conventions.get("schedule_optimiser")
    options = times if isinstance(times, dict) else {}
    return result.conventions | {f"optimiser.{key}": value for key, value in options.items()}


def _text(model: Model | None) -> str:
    """Canonical JSON: equal for equal settings, and it sorts."""
    return json.dumps(model.model_dump(mode="json"), sort_keys=True) if model else ""
