"""An experiment of the paper as a table: printed values and records in one grid. No rounding."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from solverbench.baselines.published import Published
from solverbench.benchmark.results import MetricFacts, Result
from solverbench.leaderboards.differences import estimate, ranks
from solverbench.leaderboards.shelf import Shelf
from solverbench.leaderboards.tables import Cell

PAPER = {  # metrics of ours, and those of the paper that stand beside them
    "fd": ("fid",),
    "loss": ("lpips", "loss"),
    "fit-time": ("train-time",),
    "fit-memory": ("peak-memory",),
    "sampling-time": ("sampling-time",),
    **{name: (name,) for name in ("precision", "recall", "density", "coverage")},
}
NAMES = {"fid": "FID", "lpips": "LPIPS", "loss": "distance", "train-time": "training"}
OWN: Mapping[str, tuple[MetricFacts, Callable[[Result], float | None]]] = {
    "fit-time": (
        MetricFacts(label="training, min", higher_is_better=False),
        lambda result: result.cost.fit_seconds / 60 if result.cost and result.spec.fit else None,
    ),
    "fit-memory": (
        MetricFacts(label="peak, GB", higher_is_better=False, digits=3),
        lambda result: (
            result.cost.fit_peak_bytes / 1e9 if result.cost and result.spec.fit else None
        ),
    ),
    "sampling-time": (
        MetricFacts(label="sampling, min", higher_is_better=False, digits=3),
        lambda result: result.cost.seconds_per_image * 1024 / 60 if result.cost else None,
    ),
}
LOSS = MetricFacts(label="validation distance", higher_is_better=False, digits=4)


@dataclass(frozen=True)
class Slot:
    """Where a row meets an NFE.

    Attributes:
        choices: keys of the cells of each candidate, one for each training seed; the best
            candidate is taken. Empty where nothing is run.
        published: printed values by metric of ours.
    """

    choices: tuple[tuple[str, ...], ...] = ()
    published: Mapping[str, Published] = field(default_factory=dict)


@dataclass(frozen=True)
class SheetRow:
    """A row of the paper's table; the slots by NFE, that of a student for teachers too."""

    label: str
    slots: Mapping[int, Slot]
    is_teacher: bool = False


@dataclass(frozen=True)
class Sheet:
    """One table of an experiment, before records are looked up.

    Attributes:
        title: caption.
        metrics: the first chooses among candidates.
        rows: top to bottom.
        by_lines: whether NFE stand in rows instead of columns.
        notes: why numbers differ, as far as known.
    """

    title: str
    metrics: tuple[str, ...]
    rows: tuple[SheetRow, ...]
    by_lines: bool = False
    notes: tuple[str, ...] = ()

    @property
    def nfes(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(sorted({nfe for row in self.rows for nfe in row.slots}))

    @property
    def keys(self) -> tuple[str, ...]:
        """Of all cells, each once."""
        slots = [slot for row in self.rows for slot in row.slots.values()]
        return tuple(dict.fromkeys(k for s in slots for keys in s.choices for k in keys))


@dataclass(frozen=True)
class Filled:
    """A sheet with what records say.

    Attributes:
        sheet: what was looked up.
        cells: by row, NFE and metric; only where something is run or printed.
        facts: of each metric, as its records say.
        num_found: cells with a record that went well.
    """

    sheet: Sheet
    cells: Mapping[tuple[int, int, str], Cell]
    facts: Mapping[str, MetricFacts]
    num_found: int


def fill(sheet: Sheet, shelf: Shelf) -> Filled:
    """Look up the records of a sheet and mark what stands out in each column."""
    cells: dict[tuple[int, int, str], Cell] = {}
    for i, row in enumerate(sheet.rows):
        for nfe, slot in row.slots.items():
            found = _taken(slot, sheet.metrics[0], shelf)
            for metric in sheet.metrics:
                cell = _cell(slot, found, metric, shelf)
                if row.is_teacher and found and not cell.values:
                    cell = replace(cell, status="")  # its distance to itself says nothing
                if cell.status or cell.published:
                    cells[i, nfe, metric] = cell
    records = [r for key in sheet.keys if shelf.is_ok(key) and (r := shelf.get(key))]
    facts = {metric: _facts(metric, records) for metric in sheet.metrics}
    _rank(sheet, cells, facts)
    return Filled(sheet, cells, facts, len(records))


def _taken(slot: Slot, metric: str, shelf: Shelf) -> list[Result]:
    """The records of the candidate with the lowest mean, or of the first that has any."""
    found = [[r for key in keys if (r := shelf.get(key))] for keys in slot.choices]
    means = [(_mean(results, metric, shelf), i) for i, results in enumerate(found)]
    known = [(mean, i) for mean, i in means if mean is not None]
    if known:
        return found[min(known)[1]]
    return next((results for results in found if results), [])


def _mean(results: Sequence[Result], metric: str, shelf: Shelf) -> float | None:
    values = list(_values(results, metric, shelf))
    return sum(values) / len(values) if values else None


def _cell(slot: Slot, found: Sequence[Result], metric: str, shelf: Shelf) -> Cell:
    """Values, faults and the printed number of one place."""
    values, paper = tuple(_values(found, metric, shelf)), slot.published.get(metric)
    bad = [r for r in found if r.status != "ok"]
    faults = tuple(f"{r.status} (seed {r.spec.seed}): {r.reason or 'no reason'}" for r in bad)
    if not slot.choices:
        return Cell((), "", (), paper)
    absent = "not kept" if metric == "loss" and any(r.spec.fit for r in found) else "n/a"
    status = min((r.status for r in bad), default=absent if found else "pending")
    status = "ok" if values else status
    return Cell(values, status, faults, paper, 0, estimate(found, metric, shelf.influences))


def _values(found: Sequence[Result], metric: str, shelf: Shelf) -> Iterator[float]:
    """What records, or the files beside them, say of a metric."""
    for result in found:
        if result.status != "ok":
            continue
        value = result.metrics.get(metric)
        if metric == "loss":
            curve = shelf.curve(result.spec.key())
            value = curve[-1][1] if curve else None
        elif metric in OWN:
            value = OWN[metric][1](result)
        if value is not None:
            yield value


def _facts(metric: str, records: Sequence[Result]) -> MetricFacts:
    """Label, direction and decimals of a metric."""
    if metric == "loss" or metric in OWN:
        return LOSS if metric == "loss" else OWN[metric][0]
    said = (r.metric_facts[metric] for r in records if metric in r.metric_facts)
    return next(said, MetricFacts(label=metric, higher_is_better=False))


def _rank(
    sheet: Sheet, cells: dict[tuple[int, int, str], Cell], facts: Mapping[str, MetricFacts]
) -> None:
    """Mark each column; teachers and rows that choose among candidates are left out."""
    for metric in sheet.metrics:
        for nfe in sheet.nfes:
            column = {
                i: one
                for i, row in enumerate(sheet.rows)
                if not row.is_teacher and len(row.slots.get(nfe, Slot()).choices) == 1
                if (i, nfe, metric) in cells and (one := cells[i, nfe, metric].estimate)
            }
            for i, rank in ranks(column, facts[metric].higher_is_better).items():
                cells[i, nfe, metric] = replace(cells[i, nfe, metric], rank=rank)
