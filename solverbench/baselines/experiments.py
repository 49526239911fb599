"""The paper's experiments as data: what each asks and finds, and how to run it at two scales.

A file in ``experiments`` is one experiment, which stands for the tables and figures it names. A
scale holds parts; a part is a recipe with its solvers put into rows, and becomes one table.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, ValidationError

from solverbench.baselines.published import Published, load_published
from solverbench.baselines.recipe import Counts, Recipe, load_recipe, parse_yaml
from solverbench.benchmark.spec import Model, Value
from solverbench.errors import SolverBenchError, unknown_name

FOLDER = Path(__file__).with_name("experiments")
ScaleName = Literal["embedded", "published"]
SCALES: tuple[ScaleName, ...] = ("embedded", "published")
Plot = Literal["curves", "budget", "weight", "times", "samples"]
Where = dict[str, Value]  # fields of a published value, each with what it must hold


def _listed(value: object) -> object:
    """A single entry stands for a list of one."""
    return [value] if isinstance(value, str | dict) else value


Entries = Annotated[list[str | dict[str, Value]], BeforeValidator(_listed)]


class Transfer(Model):
    """Solvers of another part, sampled without training on this part's backbone.

    Attributes:
        part: its name.
        row: the row of it whose solvers are taken.
    """

    part: str
    row: str


class Line(Model):
    """A row of a part's table.

    Attributes:
        label: as the paper writes it.
        solvers: entries of a recipe; text takes one over from the part's recipe: ``unipc-3`` the
            first without a schedule optimiser, ``unipc-3@gits`` the first with that one; so does
            ``like`` in an entry, whose other keys are laid over it. Of several at one NFE the
            table takes the one with the best first metric. None at all: published alone.
        nfe: instead of the part's.
        teacher: the reference run of the part.
        transfer: solvers trained in another part.
        paper: which published values stand beside the row; those of the label by default.
    """

    label: str
    solvers: Entries = Field(default_factory=list)
    nfe: Counts | None = None
    teacher: bool = False
    transfer: Transfer | None = None
    paper: Where | None = None

    @property
    def beside(self) -> Where:
        """Which published values stand beside the row."""
        own: Where = {"flags": "teacher"} if self.teacher else {"method": self.label}
        return own if self.paper is None else self.paper


class Part(Model):
    """One table of a scale: a recipe, what is changed in it, and its rows.

    Attributes:
        name: short; transfers refer to it.
        title: of the table.
        recipe: name of the one that is edited.
        change: keys of the recipe with their new values; mappings are laid over those there.
        nfe: columns.
        metrics: of each column, the first chooses among several solvers of a row. Beside those of
            records: ``loss`` (last validation of the fit), ``fit-time``, ``fit-memory``,
            ``sampling-time``.
        layout: ``columns`` puts NFE into columns, ``lines`` into rows.
        beside: published values that the table may show; rows choose among them.
        rows: top to bottom.
        notes: why published and reproduced numbers differ, as far as that is known.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    recipe: str
    change: dict[str, Value] = Field(default_factory=dict)
    nfe: Counts
    metrics: list[str] = Field(default=["fd"], min_length=1)
    layout: Literal["columns", "lines"] = "columns"
    beside: Where = Field(default_factory=dict)
    rows: list[Line] = Field(min_length=1)
    notes: list[str] = Field(default_factory=list)


class Scale(Model):
    """An experiment at one size.

    Attributes:
        about: what is alike and what is not, in a sentence or two.
        core_hours: of all its cells at the speed of the shipped records, were none finished; for
            the published scale ``--dry-run`` estimates instead.
        parts: run in this order, transfers last.
    """

    about: str
    core_hours: PositiveFloat | None = None
    parts: list[Part] = Field(min_length=1)


class Experiment(Model):
    """A table or figure of the paper, or several that one experiment stands behind.

    Attributes:
        id: on the command line.
        tables: of the paper, by the names of ``published.TABLES``.
        figures: of the paper.
        title: a few words.
        question: what is asked.
        finding: what the paper finds; ``{name}`` stands for one of ``numbers``.
        numbers: printed values that the finding quotes, each as fields that only it has.
        plot: how its figure is drawn, beside the tables.
        needs_files: whether solver files and training curves are read, not only records.
        embedded: the same design on a shipped backbone.
        published: the paper's own.
    """

    id: str = Field(pattern=r"^[a-z0-9]+$")
    tables: list[str] = Field(default_factory=list)
    figures: list[PositiveInt] = Field(default_factory=list)
    title: str
    question: str
    finding: str
    numbers: dict[str, Where] = Field(default_factory=dict)
    plot: Plot | None = None
    needs_files: bool = False
    embedded: Scale
    published: Scale

    def scale(self, name: ScaleName) -> Scale:
        """One of the two."""
        return self.embedded if name == "embedded" else self.published

    @property
    def found(self) -> str:
        """The finding with its numbers."""
        return self.finding.format(**{key: _printed(w) for key, w in self.numbers.items()}).strip()

    @property
    def covers(self) -> str:
        """The tables and figures it stands for, for people."""
        parts = [f"table {', '.join(self.tables)}"] if self.tables else []
        first, last = min(self.figures, default=0), max(self.figures, default=0)
        run = len(self.figures) > 2 and self.figures == list(range(first, last + 1))
        listed = f"{first}-{last}" if run else ", ".join(map(str, self.figures))
        return ", ".join(parts + ([f"figure {listed}"] if self.figures else []))


def experiment_ids() -> list[str]:
    """All experiments, tables first, as the paper counts them."""
    names = (path.stem for path in FOLDER.glob("*.yaml"))
    return sorted(names, key=_place)


def _place(name: str) -> tuple[bool, int, str]:
    """Tables by number and letter, then figures, then the rest."""
    digits = "".join(c for c in name if c.isdecimal())
    return not name[0].isdecimal(), int(digits or 99), name


@cache
def load_experiment(name: str) -> Experiment:
    """An experiment by its id, or by a table or figure that it stands for (``14b``, ``fig3``).

    Raises:
        SolverBenchError: for an unknown name, or a file that is wrong.
    """
    ids = experiment_ids()
    if name in ids:
        return _read(FOLDER / f"{name}.yaml")
    for one in map(load_experiment, ids):
        shown = {f"fig{n}" for n in one.figures} | {f"figure{n}" for n in one.figures}
        tables = {*one.tables, *(table.rstrip("abc") for table in one.tables)}
        if name in tables | shown:
            return one
    raise unknown_name("table or figure", name, ids, "solverbench paper list")


def _read(path: Path) -> Experiment:
    """One file, checked whole."""
    data = parse_yaml(path.read_text(encoding="utf-8"), f"experiment {path.stem}")
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SolverBenchError(f"experiment {path.stem}: {where}: {first['msg']}") from error


def part_recipe(
    part: Part, title: str, lines: Sequence[Line] | None = None, seeds: Sequence[int] = ()
) -> Recipe:
    """The recipe of a part.

    Args:
        part: of a scale.
        title: name of the recipe.
        lines: those whose solvers it runs; all by default. Transfers must be entries by then.
        seeds: of training, instead of the recipe's.

    Raises:
        SolverBenchError: where the part does not fit its recipe.
    """
    chosen = part.rows if lines is None else lines

    def edit(data: dict[str, Any]) -> None:
        entries = [e for line in chosen for e in _entries(part, line, data["solvers"])]
        data |= _laid(data, part.change)
        data |= {"name": title, "about": part.title, "nfe": list(part.nfe)}
        data["solvers"] = entries or [_laid(data["teacher"]["solver"], _count(data["teacher"]))]
        if seeds:
            data["seeds"] = list(seeds)

    return load_recipe(part.recipe, (), edit)


def _entries(part: Part, line: Line, known: Sequence[Any]) -> list[dict[str, Any]]:
    """The entries of a row, each with its NFE."""
    found: list[dict[str, Any]] = []
    for wanted in line.solvers:
        entry: dict[str, Any] = {"like": wanted} if isinstance(wanted, str) else dict(wanted)
        like = entry.pop("like", None)
        if like is not None:
            entry = _laid(_taken(part, str(like), known), entry)
        entry.setdefault("nfe", list(line.nfe or part.nfe))
        found.append(entry)
    return found


def _taken(part: Part, wanted: str, known: Sequence[Any]) -> dict[str, Any]:
    """The recipe's first entry of a name, and of a schedule optimiser behind ``@``."""
    name, _, schedule = wanted.partition("@")
    entries = [{"name": e} if isinstance(e, str) else e for e in known]
    found = [e for e in entries if e["name"] == name and _schedule(e) == schedule]
    if not found:
        raise SolverBenchError(f"part {part.name}: recipe {part.recipe} has no solver '{wanted}'")
    return {key: value for key, value in copy.deepcopy(found[0]).items() if key != "nfe"}


def _laid(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with other data over it; of mappings key by key."""
    merged = dict(below)
    for key, value in above.items():
        own = merged.get(key)
        both = isinstance(own, dict) and isinstance(value, dict)
        merged[key] = {**own, **value} if both else value  # type: ignore[dict-item]
    return merged


def _count(teacher: Mapping[str, Any]) -> dict[str, Any]:
    """The NFE of a teacher that is the only row."""
    return {"nfe": teacher["nfe"]}


def _schedule(entry: dict[str, Any]) -> str:
    """Name of an entry's schedule optimiser; empty where it has none."""
    schedule = entry.get("schedule") or ""
    return str(schedule["name"] if isinstance(schedule, dict) else schedule)


def select(where: Where, among: Sequence[Published]) -> tuple[Published, ...]:
    """The published values that hold what is asked; of mappings and lists, at least that."""
    return tuple(p for p in among if all(_holds(getattr(p, k), v) for k, v in where.items()))


def _holds(found: object, wanted: object) -> bool:
    if isinstance(found, dict) and isinstance(wanted, dict):
        return wanted.items() <= found.items()
    if isinstance(found, tuple):
        return wanted in found
    return found in wanted if isinstance(wanted, list) else found == wanted


def _printed(where: Where) -> str:
    """The one value that is meant, as printed."""
    found = select(where, load_published(str(where["table"])))
    if len(found) != 1:
        raise SolverBenchError(f"{len(found)} published values hold {where}; one is wanted")
    return found[0].bound + found[0].printed
