"""Sheets of an experiment as text: markdown, LaTeX, HTML, CSV and the terminal."""

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from rich.console import Group
from rich.table import Table as RichTable

from solverbench.baselines.published import Published
from solverbench.errors import unknown_name
from solverbench.leaderboards.paper_tables import NAMES, Filled
from solverbench.leaderboards.render import LATEX, MARKDOWN, RICH, Grid, Markup
from solverbench.leaderboards.tables import Cell

_AT = re.compile(r"(NFE \d+) (.+)")  # the head of a column at one NFE
UNITS = {"1": ""}  # of printed values; others are written out


@dataclass(frozen=True)
class Column:
    """A column of the text: printed or reproduced values of a metric at an NFE, 0 for all."""

    head: str
    nfe: int
    metric: str
    printed: bool


def render_sheets(filled: Sequence[Filled], fmt: str, title: str, texts: Sequence[str]) -> str:
    """An experiment as text; the same records always give the same text.

    Args:
        filled: its tables.
        fmt: ``md``, ``latex``, ``html`` or ``csv``.
        title: heading.
        texts: paragraphs below it.

    Raises:
        SolverBenchError: for an unknown format.
    """
    if fmt == "csv":
        return _csv(filled)
    if fmt not in MARKUPS:
        raise unknown_name("format", fmt, FORMATS, ", ".join(FORMATS))
    markup = MARKUPS[fmt]
    parts = [markup.heading(markup.escape(title)), *map(markup.escape, texts)]
    for one in filled:
        faults = _faults(one)
        parts.append(markup.table(markup.escape(one.sheet.title), _grid(one, faults, markup)))
        parts.append(markup.notes([markup.escape(line) for line in _notes(one, faults)]))
    return "\n\n".join(parts) + "\n"


def console_sheets(filled: Sequence[Filled]) -> Group:
    """The tables for the terminal, with their notes."""
    parts: list[RichTable | str] = []
    for one in filled:
        faults = _faults(one)
        head, *body = _grid(one, faults, RICH)
        table = RichTable(title=RICH.escape(one.sheet.title), title_justify="left")
        for i, name in enumerate(head):
            table.add_column(name, justify="right" if i else "left")
        for line in body:
            table.add_row(*line)
        parts += [table, *(RICH.escape(f"- {line}") for line in _notes(one, faults))]
    return Group(*parts)


def _grid(one: Filled, faults: Sequence[str], markup: Markup) -> Grid:
    """Head and rows; printed values stand left of reproduced ones."""
    by_lines = one.sheet.by_lines
    columns = _columns(one)
    grid = [["solver", *(["NFE"] if by_lines else []), *(markup.escape(c.head) for c in columns)]]
    for i, row in enumerate(one.sheet.rows):
        name = markup.escape(row.label)
        if not by_lines:
            values = [_text(one, (i, c.nfe, c.metric), c.printed, faults, markup) for c in columns]
            grid.append([name, *values])
            continue
        for nfe in sorted(row.slots):
            places = [((i, nfe, c.metric), c.printed) for c in columns]
            values = [_text(one, place, printed, faults, markup) for place, printed in places]
            shown = markup.escape(_count(one, i, nfe))
            grid.append([name, shown, *values])
    return grid


def _count(one: Filled, i: int, nfe: int) -> str:
    """The NFE of a line; of a teacher its own is in the notes."""
    return "" if one.sheet.rows[i].is_teacher else str(nfe)


def _columns(one: Filled) -> list[Column]:
    """The columns that hold anything."""
    sheet, found = one.sheet, []
    for nfe in (0,) if sheet.by_lines else sheet.nfes:
        for metric in sheet.metrics:
            own = [c for (_, n, m), c in one.cells.items() if m == metric and nfe in (0, n)]
            at = f"NFE {nfe}" if nfe else ""
            printed = next((c.published for c in own if c.published), None)
            if printed:
                head = NAMES.get(printed.metric, printed.metric)
                found.append(Column(f"{at} {head} (paper)".strip(), nfe, metric, True))
            if any(c.status for c in own):
                head = one.facts[metric].label
                found.append(Column(f"{at} {head}".strip(), nfe, metric, False))
    return found


def _text(
    one: Filled,
    place: tuple[int, int, str],
    printed: bool,
    faults: Sequence[str],
    markup: Markup,
) -> str:
    """A value as text; empty where there is none."""
    cell = one.cells.get(place)
    if cell is None:
        return ""
    if printed:
        return markup.escape(as_printed(cell.published)) if cell.published else ""
    marks = [faults.index(_fault(one, place, fault)) + 1 for fault in cell.faults]
    return _value(cell, one.facts[place[2]].digits, markup) + "".join(
        markup.mark.format(mark) for mark in marks
    )


def _value(cell: Cell, digits: int, markup: Markup) -> str:
    """Mean, error or spread, and rank; the status where there is no value."""
    if cell.mean is None:
        return markup.escape(cell.status)
    spread = "" if cell.error is None else f"{markup.plus_minus}{cell.error:.{digits}f}"
    text = f"{cell.mean:.{digits}f}{spread}"
    return {1: markup.bold, 2: markup.second}.get(cell.rank, "{}").format(text)


def as_printed(value: Published) -> str:
    """A printed value with its bound and unit."""
    unit = UNITS.get(value.unit, value.unit)
    return f"{value.bound}{value.printed} {unit}".strip()


def _faults(one: Filled) -> list[str]:
    """Every fault once, with its place."""
    found = [_fault(one, place, f) for place, cell in one.cells.items() for f in cell.faults]
    return list(dict.fromkeys(found))


def _fault(one: Filled, place: tuple[int, int, str], fault: str) -> str:
    row = one.sheet.rows[place[0]].label
    return " ".join(f"{row}, NFE {place[1]}: {fault}".split()).rstrip(".")


def _notes(one: Filled, faults: Sequence[str]) -> list[str]:
    """Progress, what the numbers are, reasons for differences, doubts about printed values."""
    lines = [f"{one.num_found} of {len(one.sheet.keys)} cells have a record that went well."]
    if any(cell.error is not None for cell in one.cells.values()):
        lines.append(
            "Behind ±: standard deviation over training seeds; where there is one, the standard "
            "error over images."
        )
    if any(cell.rank for cell in one.cells.values()):
        lines.append(
            "Bold: better than every other row beyond its error, image by image where that is "
            "kept. Underlined: cannot be told from the best, or where one is bold, from the "
            "second. Printed values and the teacher are not ranked, nor rows that take the best "
            "of several solvers."
        )
    lines += one.sheet.notes
    printed = [cell.published for cell in one.cells.values() if cell.published]
    lines += [f"Printed value of {who}: {note}." for who, note in _doubts(printed)]
    return [*lines, *(f"[{i}] {fault}." for i, fault in enumerate(faults, 1))]


def _doubts(printed: Sequence[Published]) -> list[tuple[str, str]]:
    """What is said of printed values, once each."""
    said: dict[str, list[str]] = {}
    for value in printed:
        if value.note:
            where = value.method if value.nfe is None else f"{value.method} at NFE {value.nfe}"
            said.setdefault(value.note, []).append(where)
    return [(", ".join(dict.fromkeys(where)), note) for note, where in said.items()]


def _csv(filled: Sequence[Filled]) -> str:
    """One line a place: printed and reproduced value at full precision."""
    out = io.StringIO()
    names = ["table", "row", "nfe", "metric", "paper_metric", "paper", "paper_bound", "paper_unit"]
    names += ["paper_source", "paper_flags", "label", "value", "error", "seeds", "rank", "status"]
    writer = csv.DictWriter(out, names, lineterminator="\n", restval="")
    writer.writeheader()
    for one in filled:
        for (i, nfe, metric), cell in one.cells.items():
            line = {"table": one.sheet.title, "row": one.sheet.rows[i].label, "nfe": nfe}
            known = {"value": cell.mean, "error": cell.error, "seeds": len(cell.values) or None}
            said = {key: value for key, value in known.items() if value is not None}
            own = {"metric": metric, "label": one.facts[metric].label, "status": cell.status}
            writer.writerow(line | own | said | {"rank": cell.rank or ""} | _paper(cell.published))
    return out.getvalue()


def _paper(value: Published | None) -> dict[str, object]:
    """The columns of a printed value."""
    if value is None:
        return {}
    return {
        "paper_metric": value.metric,
        "paper": value.printed,
        "paper_bound": value.bound,
        "paper_unit": UNITS.get(value.unit, value.unit),
        "paper_source": value.source,
        "paper_flags": " ".join(value.flags),
    }


def _html_table(caption: str, grid: Grid) -> str:
    """A table fragment; the page around it has its own style."""
    head, *body = grid
    heads = "".join(f'<th scope="col">{name}</th>' for name in head)
    rows = [
        f'<tr><th scope="row">{line[0]}</th>'
        + "".join(f"<td>{value}</td>" for value in line[1:])
        + "</tr>"
        for line in body
    ]
    return "\n".join(
        [
            '<table class="solverbench-paper">',
            f"<caption>{caption}</caption>",
            f"<thead><tr>{heads}</tr></thead>",
            "<tbody>",
            *rows,
            "</tbody>",
            "</table>",
        ]
    )


def _html_notes(lines: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{line}</li>" for line in lines) + "\n</ul>"


def _small(caption: str, grid: Grid) -> str:
    """A LaTeX table in small type with narrow gaps: these have many columns.

    Columns of one NFE share a head, "NFE 4" above "FID (paper)" and "FD[cifar16]".
    """
    groups = [_AT.fullmatch(name) for name in grid[0]]
    if not any(groups):
        return _narrow(LATEX.table(caption, grid))
    under = [found[2] if found else name for found, name in zip(groups, grid[0], strict=True)]
    table = LATEX.table(caption, [under, *grid[1:]])
    over, rules, place = list[str](), list[str](), 1
    for name, run in groupby(found[1] if found else "" for found in groups):
        num = len(list(run))
        over.append(rf"\multicolumn{{{num}}}{{c}}{{{name}}}")
        if name:
            rules.append(rf"\cmidrule(lr){{{place}-{place + num - 1}}}")
        place += num
    heads = "\n".join([r"\toprule", " & ".join(over) + r" \\", " ".join(rules)])
    return _narrow(table.replace(r"\toprule", heads, 1))


def _narrow(table: str) -> str:
    return table.replace(r"\centering", "\\centering\\small\n\\setlength{\\tabcolsep}{3pt}", 1)


MARKUPS = {
    "md": MARKDOWN,
    "latex": replace(LATEX, table=_small),
    "html": Markup(
        escape=html.escape,
        bold="<b>{}</b>",
        second="<u>{}</u>",
        view="<i>{}</i>",
        mark="<sup>[{}]</sup>",
        plus_minus=" ± ",
        heading=lambda text: f"<h2>{text}</h2>",
        table=_html_table,
        notes=_html_notes,
    ),
}
FORMATS = (*MARKUPS, "csv")
