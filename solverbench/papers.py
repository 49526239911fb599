"""The paper's experiments on this machine: what they resolve to, their state, and running them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch

from solverbench import registry, weights
from solverbench.baselines.experiments import (
    Experiment,
    Line,
    Part,
    ScaleName,
    part_recipe,
    select,
)
from solverbench.baselines.published import Published, load_published
from solverbench.baselines.recipe import Recipe, cells
from solverbench.benchmark.launch import Listener
from solverbench.benchmark.load import is_learnable
from solverbench.benchmark.spec import RunSpec
from solverbench.benchmark.store import record_path
from solverbench.commands import dry_run, run_recipe
from solverbench.errors import MissingWeightsError, SolverBenchError
from solverbench.files import write_bytes
from solverbench.inventory import files_of_run
from solverbench.leaderboards.paper_tables import PAPER, Sheet, SheetRow, Slot
from solverbench.leaderboards.shelf import COMMITTED, Shelf

ROOT = Path("runs/paper")  # of all experiments, which share cells; keys of transfers hold it
STORED = "stored"  # the solver that reads a tableau file


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A part of an experiment as cells.

    Attributes:
        part: where it comes from.
        recipe: of all rows that are trained or need no training here.
        later: of rows that sample solvers of another part; None where there are none.
        specs: the cells of each row by its label, in the order of the rows.
    """

    part: Part
    recipe: Recipe
    later: Recipe | None
    specs: Mapping[str, tuple[RunSpec, ...]]

    @property
    def recipes(self) -> list[Recipe]:
        """In the order in which they can run."""
        return [self.recipe, *([self.later] if self.later else [])]

    @cached_property
    def all_specs(self) -> tuple[RunSpec, ...]:
        """Every cell once."""
        found = {spec.key(): spec for specs in self.specs.values() for spec in specs}
        return tuple(found.values())


def resolve(
    experiment: Experiment, scale: ScaleName, root: Path = ROOT, seeds: Sequence[int] = ()
) -> list[Resolved]:
    """The parts of an experiment as cells.

    Args:
        experiment: from ``load_experiment``.
        scale: which size.
        root: where solvers lie that other parts sample; the cells of these name their files.
        seeds: of training, instead of the recipe's.

    Raises:
        SolverBenchError: where a part is wrong.
    """
    parts = experiment.scale(scale).parts
    names = {part.name: f"paper-{experiment.id}-{part.name}" for part in parts}
    first = {part.name: _trained(part, names[part.name], seeds) for part in parts}
    known = {name: specs for name, (_, specs) in first.items()}
    found = []
    for part in parts:
        recipe, specs = first[part.name]
        later, more = _transferred(part, f"{names[part.name]}-transfer", root, known)
        ordered = {line.label: (specs | more).get(line.label, ()) for line in part.rows}
        found.append(Resolved(part, recipe, later, ordered))
    return found


def _learns(name: str) -> bool:
    return name != STORED and is_learnable(name)


def _trained(
    part: Part, title: str, seeds: Sequence[int]
) -> tuple[Recipe, dict[str, tuple[RunSpec, ...]]]:
    """The recipe of a part without its transfers, and the cells of each row."""
    recipe = part_recipe(part, title, None, seeds)
    teachers = tuple(spec for spec in cells(recipe, _learns) if spec.is_teacher)
    students = _cells_of_rows(recipe, part.rows)
    own = {line.label: teachers for line in part.rows if line.teacher}
    return recipe, students | own


def _transferred(
    part: Part,
    title: str,
    root: Path,
    known: Mapping[str, Mapping[str, tuple[RunSpec, ...]]],
) -> tuple[Recipe | None, dict[str, tuple[RunSpec, ...]]]:
    """The recipe of the rows that sample another part's solvers, and their cells."""
    lines = [line for line in part.rows if line.transfer]
    if not lines:
        return None, {}
    stored = [
        line.model_copy(update={"solvers": _files(part, line, root, known)}) for line in lines
    ]
    recipe = part_recipe(part, title, stored)
    return recipe, _cells_of_rows(recipe, stored)


def _cells_of_rows(recipe: Recipe, lines: Sequence[Line]) -> dict[str, tuple[RunSpec, ...]]:
    """The students of each row; a recipe lists the solvers of its rows one after the other."""
    specs: dict[str, tuple[RunSpec, ...]] = {}
    place = 0
    for line in lines:
        num = len(line.solvers)
        own = recipe.model_copy(update={"solvers": recipe.solvers[place : place + num]})
        found = cells(own, _learns) if num else []
        specs[line.label] = tuple(spec for spec in found if not spec.is_teacher)
        place += num
    return specs


def _files(
    part: Part,
    line: Line,
    root: Path,
    known: Mapping[str, Mapping[str, tuple[RunSpec, ...]]],
) -> list[dict[str, object]]:
    """An entry for each solver file that a row samples."""
    assert line.transfer is not None
    source = known.get(line.transfer.part, {}).get(line.transfer.row)
    if source is None:
        raise SolverBenchError(f"part {part.name}: no row {line.transfer} to take solvers from")
    entries: list[dict[str, object]] = []
    for spec in source:
        file = record_path(root, spec).with_suffix(".safetensors").as_posix()
        entries.append({"name": STORED, "options": {"tableau": file}, "nfe": [spec.nfe]})
    return entries


def sheet_of(resolved: Resolved) -> Sheet:
    """The table of a part, before records are looked up."""
    part = resolved.part
    printed = load_published(str(part.beside["table"])) if part.beside else ()
    among = select(part.beside, printed)
    printed_at = {p.nfe for p in among if "teacher" not in p.flags and p.nfe in part.nfe}
    first = min((n for n in printed_at if n), default=min(part.nfe))
    rows = tuple(_row(resolved, line, among, first) for line in part.rows)
    by_lines = part.layout == "lines"
    return Sheet(part.title, tuple(part.metrics), rows, by_lines, tuple(part.notes))


def _row(resolved: Resolved, line: Line, among: Sequence[Published], first: int) -> SheetRow:
    """A row: its cells by NFE, with what is printed of them; a teacher in column ``first``."""
    own, specs = select(line.beside, among), resolved.specs[line.label]
    if line.teacher:
        return SheetRow(line.label, _teacher_slots(resolved, specs, own, first), True)
    nfes = sorted({spec.nfe for spec in specs} | {p.nfe for p in own if p.nfe})
    slots = {n: Slot(_choices(specs, n), _beside(resolved.part, own, n)) for n in nfes}
    return SheetRow(line.label, slots)


def _teacher_slots(
    resolved: Resolved, specs: Sequence[RunSpec], own: Sequence[Published], first: int
) -> dict[int, Slot]:
    """A teacher stands in one column, or in that of each student where each has its own."""
    recipe = resolved.recipe
    above = recipe.teacher_above
    slots = {}
    for spec in specs:
        nfe = spec.nfe - above if above else first
        wanted = [p for p in own if p.nfe in (None, spec.nfe) or not above]
        slots[nfe] = Slot(((spec.key(),),), _beside(resolved.part, wanted, None))
    return slots


def _choices(specs: Sequence[RunSpec], nfe: int) -> tuple[tuple[str, ...], ...]:
    """Keys at an NFE, those that differ in their training seed together."""
    found: dict[str, list[str]] = {}
    for spec in specs:
        if spec.nfe == nfe:
            options = {} if spec.solver.name == STORED else spec.solver.options
            told = [spec.solver.name, options, spec.schedule, spec.fit]
            found.setdefault(repr(told), []).append(spec.key())
    return tuple(tuple(keys) for keys in found.values())


def _beside(part: Part, own: Sequence[Published], nfe: int | None) -> dict[str, Published]:
    """The printed values at an NFE by metric of ours."""
    here = [p for p in own if nfe is None or p.nfe in (nfe, None)]
    found = {}
    for metric in part.metrics:
        matching = [p for p in here if p.metric in PAPER.get(metric, ())]
        if matching:
            found[metric] = matching[0]
    return found


@dataclasses.dataclass(frozen=True)
class State:
    """How far an experiment is.

    Attributes:
        num_published: values that the paper prints in its tables.
        num_cells: of the embedded scale.
        num_found: of these with a record that went well.
        num_failed: of these with a record that says why the cell failed.
        missing: published files that the published scale lacks.
        needs_gpu: whether the published scale asks for a GPU that is not here.
    """

    num_published: int
    num_cells: int
    num_found: int
    num_failed: int
    missing: tuple[str, ...]
    needs_gpu: bool

    def text(self) -> str:
        """For people."""
        embedded = f"{self.num_found} of {self.num_cells} cells"
        pending = self.num_cells - self.num_found - self.num_failed
        for num, what in ((self.num_failed, "failed"), (pending, "pending")):
            embedded += f", {num} {what}" if num else ""
        lacking = [*self.missing, *(["a GPU"] if self.needs_gpu else [])]
        full = f"lacks {', '.join(lacking)}" if lacking else "can run"
        values = f"{self.num_published} printed values" if self.num_published else "drawn only"
        return f"{values}; embedded {embedded}; published scale {full}"


def state_of(experiment: Experiment, shelf: Shelf) -> State:
    """How far an experiment is, by the records of a shelf."""
    embedded = {s.key() for one in resolve(experiment, "embedded") for s in one.all_specs}
    recipes = [r for one in resolve(experiment, "published") for r in one.recipes]
    files = dict.fromkeys(name for recipe in recipes for name in files_of_run(recipe))
    num_found = sum(map(shelf.is_ok, embedded))
    on_gpu = any(str(r.backbone.options.get("device", "cpu")) != "cpu" for r in recipes)
    return State(
        num_published=sum(len(load_published(table)) for table in experiment.tables),
        num_cells=len(embedded),
        num_found=num_found,
        num_failed=len([key for key in embedded if shelf.get(key)]) - num_found,
        missing=tuple(name for name in files if not weights.present(name)),
        needs_gpu=on_gpu and not torch.accelerator.is_available(),
    )


def shelf_of(folders: Sequence[Path] = ()) -> Shelf:
    """Some folders of records, then those that ship."""
    return Shelf([*folders, COMMITTED])


def planned(found: Sequence[Resolved], root: Path, jobs: Callable[[Recipe], int]) -> Iterator[str]:
    """What a run would do and take, part by part.

    Raises:
        SolverBenchError: at the end, what the run would end with; of missing files all together.
    """
    missing: list[str] = []
    faults: list[SolverBenchError] = []
    for one in found:
        lines, fault = dry_run(one.recipe, root, jobs(one.recipe))
        yield from lines
        if one.later:
            num = sum(len(one.specs[line.label]) for line in one.part.rows if line.transfer)
            yield f"then {num} cells sample solvers of other parts"
        yield ""
        if isinstance(fault, MissingWeightsError):
            missing += fault.names
        elif fault is not None:
            faults.append(fault)
    if missing:
        raise MissingWeightsError(dict.fromkeys(missing))
    if faults:
        raise faults[0]


def run_parts(
    found: Sequence[Resolved], root: Path, jobs: Callable[[Recipe], int], listen: Listener
) -> bool:
    """Run what is missing: all parts, then what samples solvers of other parts.

    Returns:
        Whether every cell went well.
    """
    if any(one.later for one in found):
        registry.solvers.get(STORED)  # a missing plugin shows before slow work
    order = [one.recipe for one in found] + [one.later for one in found if one.later]
    results = [r for recipe in order for r in run_recipe(recipe, root, jobs(recipe), listen)]
    return all(result.status == "ok" for result in results)


def reuse(found: Sequence[Resolved], root: Path, shelf: Shelf, needs_files: bool) -> int:
    """Copy finished cells of other folders, so that they are not run again.

    Args:
        found: whose cells.
        root: folder of records to fill; what is there stays.
        shelf: where to look.
        needs_files: take a cell only with its solver file and, if it was trained, its curve.

    Returns:
        How many cells were copied.
    """
    num = 0
    for target, files in reusable(found, root, shelf, needs_files):
        for path in reversed(files):  # the record last: it says that the cell is finished
            write_bytes(target.with_name(path.name), path.read_bytes())
        num += 1
    return num


def reusable(
    found: Sequence[Resolved], root: Path, shelf: Shelf, needs_files: bool
) -> Iterator[tuple[Path, list[Path]]]:
    """Records that ``reuse`` would write, and what is copied there; arguments as there."""
    for spec in {s.key(): s for one in found for s in one.all_specs}.values():
        target, result = record_path(root, spec), shelf.get(spec.key())
        files = shelf.beside(spec.key())
        wanted = {".safetensors"} | ({".jsonl"} if spec.fit else set()) if needs_files else set()
        whole = wanted <= {path.suffix for path in files if ".influence." not in path.name}
        if not target.exists() and result is not None and result.status == "ok" and whole:
            yield target, files
