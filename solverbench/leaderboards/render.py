"""Tables as text: markdown, LaTeX, CSV and the terminal. The only place that rounds."""

import csv
import html
import io
import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.markup import escape as rich_escape
from rich.table import Table as RichTable

from solverbench.baselines.published import load_published
from solverbench.benchmark.results import Cost, Result
from solverbench.benchmark.store import Influences
from solverbench.errors import SolverBenchError, unknown_name
from solverbench.leaderboards.differences import no_influences
from solverbench.leaderboards.notes import heading, notes
from solverbench.leaderboards.tables import (
    COST_FIELDS,
    Cell,
    Row,
    Table,
    build,
    metric_names,
    series,
    split,
)
from solverbench.leaderboards.views import find, listed, show

Grid = list[list[str]]  # the first row is the header


@dataclass(frozen=True)
class Markup:
    """How one format writes text.

    Attributes:
        escape: plain text to the format.
        bold: template of a value that is better than all others.
        second: template of an underlined value.
        view: template of the title of a row that repeats others.
        mark: template of a reference to a numbered fault.
        plus_minus: between a value and its error or spread.
        heading: of a group; takes escaped text.
        table: caption and escaped cells to text.
        notes: escaped sentences to text.
    """

    escape: Callable[[str], str]
    bold: str
    second: str
    view: str
    mark: str
    plus_minus: str
    heading: Callable[[str], str]
    table: Callable[[str, Grid], str]
    notes: Callable[[Sequence[str]], str]


def render(
    results: Sequence[Result],
    fmt: str,
    metrics: Sequence[str] | None = None,
    influences: Influences = no_influences,
) -> str:
    """Records as text; the same records always give the same text.

    Args:
        results: records of any backbones and protocols; each group gets its own tables.
        fmt: ``md``, ``latex`` or ``csv``.
        metrics: which and in which order; None for all, ``fd`` first.
        influences: what lies beside the records, for paired tests: ``StoredInfluences``.

    Raises:
        SolverBenchError: if there are no records, or the format or a metric is unknown.
    """
    if fmt not in FORMATS:
        raise unknown_name("format", fmt, FORMATS, ", ".join(FORMATS))
    return FORMATS[fmt](results, _chosen(results, metrics), influences)


def console(
    results: Sequence[Result],
    metrics: Sequence[str] | None = None,
    influences: Influences = no_influences,
) -> Group:
    """Records for the terminal: the first metric by NFE, then all metrics of every cell."""
    chosen = _chosen(results, metrics)
    parts: list[RichTable | str] = []
    for group in split(results):
        tables = _tables(group, chosen, influences)
        faults = _faults(tables)
        first = tables[0]
        parts.append(_rich(f"{first.facts.label}: {heading(group)}", _grid(first, faults, RICH)))
        parts.append(_rich("all metrics", _overview(tables, faults, RICH)))
        parts.append(_rich("cost, measured", _costs(group, RICH)))
        parts += [rich_escape(f"[{i}] {fault}") for i, fault in enumerate(faults, 1)]
        parts += [rich_escape(f"- {line}") for line in notes(group, tables)]
    return Group(*parts)


def _chosen(results: Sequence[Result], metrics: Sequence[str] | None) -> list[str]:
    """The metrics to show."""
    if not results:
        raise SolverBenchError("no records to show. Run a recipe first")
    names = metric_names(results)
    for name in metrics or ():
        if name not in names:
            raise unknown_name("metric", name, names, ", ".join(names))
    return list(metrics or names)


def _tables(group: Sequence[Result], chosen: Sequence[str], influences: Influences) -> list[Table]:
    """The tables of a group; a metric that none of its records asked for is left out."""
    own = metric_names(group)
    published, views = load_published("2"), find(group)
    names = [name for name in chosen if name in own] or [own[0] if own else chosen[0]]
    tables = [build(group, name, published, influences) for name in names]
    return [show(table, views, published) for table in tables]


def _report(
    results: Sequence[Result], chosen: Sequence[str], influences: Influences, markup: Markup
) -> str:
    """Per group: heading, one table a metric, costs, notes."""
    parts = []
    for group in split(results):
        tables = _tables(group, chosen, influences)
        faults = _faults(tables)
        parts.append(markup.heading(markup.escape(heading(group))))
        for table in tables:
            better = "higher" if table.facts.higher_is_better else "lower"
            caption = f"{table.facts.label} ({better} is better)"
            parts.append(markup.table(markup.escape(caption), _grid(table, faults, markup)))
        caption = "Cost, measured (mean over training seeds)"
        parts.append(markup.table(markup.escape(caption), _costs(group, markup)))
        numbered = [f"[{i}] {fault}." for i, fault in enumerate(faults, 1)]
        lines = [markup.escape(line) for line in numbered + notes(group, tables)]
        parts.append(markup.notes(lines))
    return "\n\n".join(parts) + "\n"


def _faults(tables: Sequence[Table]) -> list[str]:
    """Every fault once, in the order of the rows."""
    rows = [row for table in tables for row in table.rows]
    found = [_fault(row, n, f) for row in rows for n, c in row.cells.items() for f in c.faults]
    return list(dict.fromkeys(found))


def _fault(row: Row, nfe: int, fault: str) -> str:
    """A fault with its place, in one line."""
    return " ".join(f"{row.title}, NFE {nfe}: {fault}".split()).rstrip(".")


def _grid(table: Table, faults: Sequence[str], markup: Markup) -> Grid:
    """Rows x NFE; the paper's value stands right of ours. The teacher takes the first column."""
    header = ["solver"]
    for nfe in table.nfes:
        header += [f"NFE {nfe}", "paper"] if nfe in table.has_published else [f"NFE {nfe}"]
    grid = [header if len(header) > 1 else [*header, "value"]]
    for row in table.rows:
        line = [_name(row, markup)]
        for nfe, cell in row.cells.items():
            line.append(_cell(table, row, nfe, faults, markup))
            if row.is_teacher and cell.published:
                line[-1] += f" (paper {cell.published.value:.2f})"
            elif nfe in table.has_published and not row.is_teacher:
                line.append(f"{cell.published.value:.2f}" if cell.published else "")
        grid.append(line + [""] * (len(grid[0]) - len(line)))
    return grid


def _name(row: Row, markup: Markup) -> str:
    """The title of a row; that of a view stands out."""
    return (markup.view if row.is_view else "{}").format(markup.escape(row.title))


def _cell(table: Table, row: Row, nfe: int, faults: Sequence[str], markup: Markup) -> str:
    """Value, error or spread, and rank, or the status; then the numbers of its faults."""
    cell: Cell = row.cells[nfe]
    digits = table.facts.digits
    if cell.mean is None:
        text = markup.escape(cell.status)
    else:
        spread = "" if cell.error is None else f"{markup.plus_minus}{cell.error:.{digits}f}"
        text = f"{cell.mean:.{digits}f}{spread}"
        text = {1: markup.bold, 2: markup.second}.get(cell.rank, "{}").format(text)
    marks = [faults.index(_fault(row, nfe, fault)) + 1 for fault in cell.faults]
    return text + "".join(markup.mark.format(mark) for mark in marks)


def _overview(tables: Sequence[Table], faults: Sequence[str], markup: Markup) -> Grid:
    """One line a cell, one column a metric."""
    grid = [["solver", "NFE", *(table.facts.label for table in tables)]]
    for i, row in enumerate(tables[0].rows):
        for nfe, cell in row.cells.items():
            if cell.status:
                values = [_cell(t, t.rows[i], nfe, faults, markup) for t in tables]
                grid.append([_name(row, markup), str(nfe), *values])
    return grid


def _costs(group: Sequence[Result], markup: Markup) -> Grid:
    """One line a cell and machine; numbers of two machines are never averaged."""
    several = len({_machine(r) for r in group}) > 1
    grid = [["solver", "NFE", *COST_FIELDS, *(["machine"] if several else [])]]
    for row in listed(group):
        for nfe in row.nfes:
            for machine in sorted({_machine(r) for r in row.at(nfe)}):
                costs = [r.cost for r in row.at(nfe) if r.cost and _machine(r) == machine]
                where = [markup.escape(machine)] if several else []
                grid.append([markup.escape(row.title), str(nfe), *_means(costs), *where])
    return grid


def _means(costs: Sequence[Cost]) -> list[str]:
    """The columns of ``COST_FIELDS``; empty where nothing was measured."""
    if not costs:
        return [""] * len(COST_FIELDS)
    return [_number(statistics.fmean(of(cost) for cost in costs)) for of in COST_FIELDS.values()]


def _number(value: float) -> str:
    """Three digits that count, without an exponent where it would not help."""
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _machine(result: Result) -> str:
    """Times of two machines or torch versions are not comparable."""
    made = result.provenance
    return f"{made.device}, {made.threads} thread(s), torch {made.torch}"


def _markdown_escape(text: str) -> str:
    """No character of the text is read as markdown or HTML."""
    return re.sub(r"([\\`*_|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _markdown_table(caption: str, grid: Grid) -> str:
    """A pipe table; numbers to the right."""
    rule = ["---", *("---:" for _ in grid[0][1:])]
    lines = [f"| {' | '.join(line)} |" for line in (grid[0], rule, *grid[1:])]
    return "\n".join([f"### {caption}", "", *lines])


def _latex_escape(text: str) -> str:
    """No character of the text is read as a command."""
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
    }
    return "".join(special.get(c, c) for c in " ".join(text.split()))


def _latex_table(caption: str, grid: Grid) -> str:
    """A booktabs table with its caption."""
    head, *body = [" & ".join(line) + r" \\" for line in grid]
    return "\n".join(
        [
            r"\begin{table}[ht]",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(grid[0]) - 1)}}}",
            *(r"\toprule", head, r"\midrule", *body, r"\bottomrule"),
            *(r"\end{tabular}", r"\end{table}"),
        ]
    )


def _rich(title: str, grid: Grid) -> RichTable:
    """A table for the terminal; cells may hold rich markup."""
    table = RichTable(title=rich_escape(title), title_justify="left")
    for i, name in enumerate(grid[0]):
        table.add_column(rich_escape(name), justify="right" if i else "left")
    for line in grid[1:]:
        table.add_row(*line)
    return table


MARKDOWN = Markup(
    escape=_markdown_escape,
    bold="**{}**",
    second="<ins>{}</ins>",
    view="*{}*",
    mark=" [{}]",
    plus_minus=" ± ",
    heading=lambda text: f"## {text}",
    table=_markdown_table,
    notes=lambda lines: "\n".join(f"- {line}" for line in lines),
)
LATEX = Markup(
    escape=_latex_escape,
    bold=r"\textbf{{{}}}",
    second=r"\underline{{{}}}",
    view=r"\emph{{{}}}",
    mark="$^{{{}}}$",
    plus_minus=r" $\pm$ ",
    heading=lambda text: f"% needs \\usepackage{{booktabs}}\n\\subsection*{{{text}}}",
    table=_latex_table,
    notes=lambda lines: (
        "{\\footnotesize\n" + "\n\n".join(rf"\noindent {line}" for line in lines) + "\n}"
    ),
)
RICH = Markup(
    escape=rich_escape,
    bold="[bold]{}[/bold]",
    second="[underline]{}[/underline]",
    view="[italic]{}[/italic]",
    mark=r" \[{}]",
    plus_minus=" ± ",
    heading=str,
    table=lambda caption, grid: "",
    notes="\n".join,
)


def _csv(results: Sequence[Result], chosen: Sequence[str], influences: Influences) -> str:
    """One line a record, full precision, every metric and cost; empty where not measured."""
    out = io.StringIO()
    groups = split(results)
    spreads = [_spreads(group, chosen) for group in groups]
    lines = [
        _csv_line(result, chosen, spread[result.spec.key()])
        for group, spread in zip(groups, spreads, strict=True)
        for result in group
    ]
    writer = csv.DictWriter(out, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _spreads(group: Sequence[Result], chosen: Sequence[str]) -> dict[str, dict[str, float]]:
    """By record and metric the sample deviation over training seeds of its cell, if several."""
    found: dict[str, dict[str, float]] = {}
    for row in series(group):
        for nfe in row.nfes:
            good = [r for r in row.at(nfe) if r.status == "ok"]
            values = {name: [r.metrics[name] for r in good if name in r.metrics] for name in chosen}
            own = {name: statistics.stdev(v) for name, v in values.items() if len(v) > 1}
            found |= {r.spec.key(): own for r in row.at(nfe)}
    return found


def _csv_line(result: Result, chosen: Sequence[str], spread: dict[str, float]) -> dict[str, object]:
    """The columns of one record; ``spread`` by metric, over all training seeds of its cell."""
    spec, cost = result.spec, result.cost
    return {
        "solver": spec.solver.name,
        "title": result.title,
        "options": json.dumps(spec.solver.options, sort_keys=True),
        "schedule": spec.schedule.name if spec.schedule else "",
        "schedule_options": json.dumps(
            spec.schedule.options if spec.schedule else {}, sort_keys=True
        ),
        "backbone": spec.backbone.name,
        "backbone_options": json.dumps(spec.backbone.options, sort_keys=True),
        "nfe": spec.nfe,
        "seed": spec.seed,
        "is_teacher": spec.is_teacher,
        "status": result.status,
        "reason": " ".join(result.reason.split()),
        **{name: result.metrics.get(name, "") for name in chosen},
        **{f"{name}_se": result.errors.get(name, "") for name in chosen},
        **{f"{name}_seed_sd": spread.get(name, "") for name in chosen},
        "nfe_measured": cost.nfe if cost else "",
        **{
            name: getattr(cost, name) if cost else "" for name in Cost.model_fields if name != "nfe"
        },
        "num_images": spec.evaluation.num_images,
        "flags": " ".join(result.flags),
        **{name: getattr(result.provenance, name) for name in ("device", "threads", "torch")},
        "commit": result.provenance.commit,
        "created": result.provenance.created,
        "version": spec.version,
        "key": spec.key(),
    }


FORMATS: dict[str, Callable[[Sequence[Result], Sequence[str], Influences], str]] = {
    "md": lambda results, chosen, influences: _report(results, chosen, influences, MARKDOWN),
    "latex": lambda results, chosen, influences: _report(results, chosen, influences, LATEX),
    "csv": _csv,
}
