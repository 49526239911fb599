"""Views: rows that take, for each NFE, the best of other rows. They compete for no rank."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from solverbench.baselines.published import Published
from solverbench.benchmark.results import Result
from solverbench.benchmark.spec import Named, RunSpec
from solverbench.leaderboards.tables import (
    Cell,
    Row,
    Series,
    Table,
    build,
    differ,
    metric_names,
    series,
    setting,
)

JUDGES = ("fd", "fid")  # the metrics that may choose; where neither was measured, there is no view
FIRST_GRID = "logsnr"  # the grid that stands for the others
TUNED = ("solver", "variant", "order", "theta_lr", "xi_lr", "fit.lr")  # may differ in Best LD3


@dataclass(frozen=True)
class View:
    """Where the cells of a view come from; rows are numbered as in ``series``.

    Attributes:
        title: as shown.
        members: rows to choose from, each with its name in the note.
        after: the row that it stands below.
        hidden: members that tables leave out, since the view stands for them.
        taken: for each NFE the row taken; no entry where none has a value.
        judge: label of the metric that chose.
        backbone: name, to find what papers say of a row of this title.
    """

    title: str
    members: dict[int, str]
    after: int
    hidden: frozenset[int]
    taken: dict[int, int]
    judge: str
    backbone: str

    @property
    def note(self) -> str:
        """How it was chosen, and which row was taken."""
        taken = ", ".join(f"NFE {nfe} {self.members[i]}" for nfe, i in self.taken.items())
        standing = "marked as the row that it takes" if self.hidden else "not ranked"
        left_out = " Rows left out here are ranked too and stand in the CSV." if self.hidden else ""
        return (
            f"{self.title}: a view, {standing}; at each NFE the row with the lowest {self.judge} "
            f"of {', '.join(self.members.values())}. Taken: {taken or 'none'}. Chosen by the "
            f"samples that it is measured on, so it flatters.{left_out}"
        )


def find(group: Sequence[Result]) -> list[View]:
    """The views of a group: the best grid of each training-free solver, and ``Best LD3``."""
    names = metric_names(group)
    if not names or names[0] not in JUDGES:
        return []
    table, found = build(group, names[0]), series(group)
    return [*_best_grids(found, table), *_best_ld3(found, table)]


def listed(group: Sequence[Result]) -> list[Series]:
    """The rows of a group that tables show."""
    hidden = _hidden(find(group))
    return [row for i, row in enumerate(series(group)) if i not in hidden]


def show(table: Table, views: Sequence[View], published: Sequence[Published]) -> Table:
    """A table with its views and without the rows that they stand for.

    Ranks stay those among all rows: where one that is left out is the best or second, no other
    row is marked in its place.

    Args:
        table: all rows, in the order of ``series``.
        views: from ``find`` of the same group.
        published: values of a method with the title of a view are set beside it.
    """
    hidden, rows = _hidden(views), []
    for i, row in enumerate(table.rows):
        rows += [] if i in hidden else [row]
        rows += [_row(view, table, published) for view in views if view.after == i]
    return Table(table.metric, table.facts, table.nfes, tuple(rows))


def _hidden(views: Sequence[View]) -> set[int]:
    """The rows that tables leave out."""
    return {i for view in views for i in view.hidden}


def _best_ld3(found: Sequence[Series], table: Table) -> Iterator[View]:
    """The best base solver of LD3, of rows that share all but the base and its learning rates.

    Source: arXiv 2510.17699, table 2, has a row chosen so.
    """
    rows = {
        i: row
        for i, row in enumerate(found)
        if _spec(row).solver.name.startswith("ld3-") and not row.is_teacher
    }
    told_apart = differ([""] * len(rows), [row.results for row in rows.values()])
    families: dict[tuple[tuple[str, str], ...], dict[int, str]] = {}
    for (i, row), settings in zip(rows.items(), told_apart, strict=True):
        kept = tuple((key, value) for key, value in settings.items() if key not in TUNED)
        families.setdefault(kept, {})[i] = row.title
    several = {kept: own for kept, own in families.items() if _num_solvers(found, own) > 1}
    for kept, members in several.items():
        title = Series("Best LD3", (), False).titled(dict(kept) if len(several) > 1 else {})
        yield _view(title, members, max(members), frozenset(), found, table)


def _num_solvers(found: Sequence[Series], members: Iterable[int]) -> int:
    """How many plugins are among some rows."""
    return len({_spec(found[i]).solver.name for i in members})


def _best_grids(found: Sequence[Series], table: Table) -> Iterator[View]:
    """Of each training-free solver that was run on several grids, the best grid."""
    families: dict[str, dict[int, str]] = {}
    for i, row in enumerate(found):
        if (grid := _grid(row)) and not row.is_teacher:
            families.setdefault(_but_grid(_spec(row).solver), {})[i] = grid
    for members in families.values():
        grids = set(members.values())
        if len(grids) > 1:
            base = next((i for i, grid in members.items() if grid == FIRST_GRID), min(members))
            rest = {k: v for k, v in found[base].settings.items() if k != "schedule"}
            title = f"{found[base].titled(rest)}, best of {len(grids)} grids"
            yield _view(title, members, base, frozenset(members) - {base}, found, table)


def _spec(row: Series) -> RunSpec:
    """What all records of a row were asked for, but NFE and seed."""
    return row.results[0].spec


def _grid(row: Series) -> str:
    """The grid of a row by its name; empty where times were listed, optimised or learned."""
    spec = _spec(row)
    named = isinstance(spec.solver.options.get("schedule", ""), str)
    plain = spec.fit is None and spec.schedule is None and named
    return setting(row.results, "schedule") if plain else ""


def _but_grid(solver: Named) -> str:
    """Equal for rows that differ in their grid alone."""
    options = {key: value for key, value in solver.options.items() if key != "schedule"}
    return json.dumps([solver.name, options], sort_keys=True)


def _view(
    title: str,
    members: Mapping[int, str],
    after: int,
    hidden: frozenset[int],
    found: Sequence[Series],
    table: Table,
) -> View:
    """A view whose cells are chosen by the lowest mean; of equal ones the first."""
    taken = {}
    for nfe in table.nfes:
        means = {i: m for i in members if (m := table.rows[i].cells[nfe].mean) is not None}
        if means:
            taken[nfe] = min(means, key=means.__getitem__)
    backbone = _spec(found[after]).backbone.name
    return View(title, dict(members), after, hidden, taken, table.facts.label, backbone)


def _row(view: View, table: Table, published: Sequence[Published]) -> Row:
    """The row of a view in one table; faults of the rows it hides are its own.

    A view that hides rows shows the rank of the row it takes, which might stand nowhere else.
    """
    cells = {}
    for nfe in table.nfes:
        own = {i: table.rows[i].cells[nfe] for i in view.members}
        worst = min((c.status for c in own.values() if c.status), default="")
        taken = own.get(view.taken.get(nfe, -1), Cell((), worst))
        faults = [f"{table.rows[i].title}: {f}" for i in sorted(view.hidden) for f in own[i].faults]
        name = "fid" if table.facts.label == "FID" else table.metric  # as papers call it
        where = (view.title, view.backbone, name, nfe)
        paper = (p for p in published if (p.method, p.backbone, p.metric, p.nfe) == where)
        rank = taken.rank if view.hidden else 0
        found = next(paper, None)
        cells[nfe] = Cell(taken.values, taken.status, tuple(faults), found, rank, taken.estimate)
    return Row(view.title, cells, is_view=True)
