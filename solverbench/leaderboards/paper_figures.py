"""Figures of an experiment, in black on white, as SVG and PNG; they need matplotlib."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from statistics import fmean, stdev
from textwrap import fill
from typing import Any

from solverbench.benchmark.results import Result
from solverbench.errors import SolverBenchError
from solverbench.leaderboards.paper_tables import Filled
from solverbench.leaderboards.shelf import Shelf

STYLE: Any = {  # its stubs differ between versions of matplotlib
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "axes.titlesize": 8,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "solverbench",  # ids in SVG files are the same each time
}
LOOKS = (  # told apart without colour
    {"color": "0.0", "linestyle": "-", "marker": "o"},
    {"color": "0.45", "linestyle": "--", "marker": "s"},
    {"color": "0.0", "linestyle": ":", "marker": "^"},
    {"color": "0.45", "linestyle": "-.", "marker": "D"},
    {"color": "0.0", "linestyle": "--", "marker": "x"},
    {"color": "0.65", "linestyle": "-", "marker": "v"},
)
FILES: dict[str, Any] = {".svg": {"metadata": {"Date": None}}, ".png": {"dpi": 160}}
PANEL = (2.6, 2.1)  # inches
WIDEST = 36  # letters of a title above a panel
Points = list[tuple[float, list[float]]]  # x, and a value for each training seed


def draw_figure(plot: str, filled: Sequence[Filled], shelf: Shelf) -> dict[str, bytes]:
    """Draw what records, and training curves beside them, hold.

    Args:
        plot: ``curves``, ``budget``, ``weight`` or ``times``.
        filled: the tables of the experiment.
        shelf: where the records lie.

    Returns:
        Contents of a file by its ending; none where there is nothing to draw. The same records
        give the same SVG.

    Raises:
        SolverBenchError: where matplotlib is not installed.
    """
    panels = [panel for one in filled for panel in PLOTS[plot](one, shelf)]
    if not panels:
        return {}
    figure_of, context = _matplotlib()
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    with context(STYLE):
        figure = figure_of(figsize=(PANEL[0] * columns, PANEL[1] * rows))
        for i, (title, labels, lines) in enumerate(panels, 1):
            axis = figure.add_subplot(rows, columns, i)
            axis.set(title=fill(title, WIDEST), xlabel=labels[0], ylabel=labels[1])
            if labels[1].endswith("distance") or labels[0] == AXES["weight"][0]:
                axis.set_yscale("log")
            if labels[0] == AXES["weight"][0]:  # decades, and 0 for GS
                least = min((x for _, points in lines for x, _ in points if x > 0), default=1.0)
                axis.set_xscale("symlog", linthresh=least)
            for (name, points), look in zip(lines, cycle(LOOKS), strict=False):
                _line(axis, name, points, look)
            axis.legend()
        return {ending: _encoded(figure, ending) for ending in FILES}


def _matplotlib() -> tuple[Callable[..., Any], Callable[[Any], AbstractContextManager[None]]]:
    """A maker of figures that can be written without a screen, and of contexts of style."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise SolverBenchError(
            "figures need matplotlib: pip install 'solverbench[figures]'"
        ) from None
    return Figure, rc_context


def _line(axis: Any, name: str, points: Points, look: dict[str, str]) -> None:
    """Means over training seeds; bars are their standard deviation, where there are several."""
    x = [place for place, _ in points]
    y = [fmean(values) for _, values in points]
    spread = [stdev(values) if len(values) > 1 else 0.0 for _, values in points]
    every = max(1, len(x) // 6)
    axis.errorbar(x, y, spread, capsize=2, markevery=every, errorevery=every, label=name, **look)


def _encoded(figure: Any, ending: str) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=ending[1:], **FILES[ending])
    return buffer.getvalue()


Panel = tuple[str, tuple[str, str], list[tuple[str, Points]]]  # title, axes, lines


def _curves(one: Filled, shelf: Shelf) -> Iterator[Panel]:
    """Validation distance by iteration: a panel an NFE, a line a row."""
    for nfe in one.sheet.nfes:
        lines = []
        for row in one.sheet.rows:
            keys = [key for keys in _keys(one, row.label, nfe) for key in keys]
            curves = [curve for key in keys if (curve := shelf.curve(key))]
            places = dict.fromkeys(i for curve in curves for i, _ in curve)
            points: Points = [
                (i, [value for curve in curves for at, value in curve if at == i]) for i in places
            ]
            if points:
                lines.append((row.label, points))
        if lines:
            yield f"{one.sheet.title.partition(',')[0]}, NFE {nfe}", AXES["curves"], lines


def _budget(one: Filled, shelf: Shelf) -> Iterator[Panel]:
    """The first metric by iterations of the fit: a line a method and NFE."""
    yield from _by(one, shelf, "budget", lambda r: r.spec.fit.iterations if r.spec.fit else None)


def _weight(one: Filled, shelf: Shelf) -> Iterator[Panel]:
    """The first metric by the weight of the adversarial loss; 0 for GS."""

    def weight(result: Result) -> float:
        found = result.conventions.get("weight", 0.0)
        return float(found) if isinstance(found, int | float) else 0.0

    for title, axes, lines in _by(one, shelf, "weight", weight):
        joined = sorted(point for _, points in lines for point in points)
        yield title, axes, [(f"NFE {lines[0][0].rpartition('@')[2].strip()}", joined)]


def _by(
    one: Filled, shelf: Shelf, plot: str, place: Callable[[Result], float | None]
) -> Iterator[Panel]:
    """The first metric against something that records say."""
    metric = one.sheet.metrics[0]
    found: dict[str, dict[float, list[float]]] = {}
    for key in one.sheet.keys:
        result = shelf.get(key)
        if result and metric in result.metrics and (x := place(result)) is not None:
            line = found.setdefault(f"{result.title} @ {result.spec.nfe}", {})
            line.setdefault(x, []).append(result.metrics[metric])
    if found:
        lines = [(name, sorted(points.items())) for name, points in found.items()]
        yield one.sheet.title, (AXES[plot][0], one.facts[metric].label), lines


def _times(one: Filled, shelf: Shelf) -> Iterator[Panel]:
    """Nodes, and the times told to the network, of the first training seed."""
    for row in one.sheet.rows:
        for nfe in one.sheet.nfes:
            keys = [key for keys in _keys(one, row.label, nfe) for key in keys]
            results = [r for key in keys if (r := shelf.get(key)) and r.status == "ok"]
            lines: list[tuple[str, Points]] = []
            for name, field in (("nodes", "t"), ("network", "t_eval")):
                times = results[0].conventions.get(field) if results else None
                if isinstance(times, list):
                    points: Points = [(i, [float(str(t))]) for i, t in enumerate(times)]
                    lines.append((name, points))
            if lines:
                yield f"{row.label} @ {nfe}, {one.sheet.title}", AXES["times"], lines


def _keys(one: Filled, label: str, nfe: int) -> tuple[tuple[str, ...], ...]:
    """The cells of a row at an NFE."""
    rows = [row for row in one.sheet.rows if row.label == label and not row.is_teacher]
    return tuple(keys for r in rows if nfe in r.slots for keys in r.slots[nfe].choices)


AXES = {
    "curves": ("iteration", "validation distance"),
    "budget": ("iterations of training", ""),
    "weight": ("weight of the adversarial loss", ""),
    "times": ("step", "time"),
}
PLOTS: dict[str, Callable[[Filled, Shelf], Iterator[Panel]]] = {
    "curves": _curves,
    "budget": _budget,
    "weight": _weight,
    "times": _times,
}
