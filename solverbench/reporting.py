"""An experiment with its records, as text, figures and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Group
from rich.markup import escape
from torch import Tensor

from solverbench import leaderboards
from solverbench.baselines.experiments import (
    Experiment,
    ScaleName,
    experiment_ids,
    load_experiment,
)
from solverbench.benchmark.spec import RunSpec
from solverbench.commands import images_of
from solverbench.errors import SolverBenchError
from solverbench.files import write_bytes, write_text
from solverbench.leaderboards.boards import Study
from solverbench.leaderboards.paper_figures import draw_figure
from solverbench.leaderboards.paper_render import console_sheets, render_sheets
from solverbench.leaderboards.paper_tables import Filled, fill
from solverbench.leaderboards.shelf import Shelf
from solverbench.papers import Resolved, resolve, sheet_of
from solverbench.pictures import labelled, write_png
from solverbench.solvers.tableau import Tableau

NUM_SHOWN = 6  # samples of either kind, as in the paper's figures
NUM_SEARCHED = 250  # seeds among which those that differ most are looked for
REMARKS = Path(leaderboards.__file__).with_name("remarks")  # paper-2a.md and the like
ENDINGS = {"md": ".md", "latex": ".tex", "html": ".html", "csv": ".csv"}


@dataclass(frozen=True)
class Report:
    """An experiment at a scale with what records say; the same records give the same text."""

    experiment: Experiment
    scale: ScaleName
    found: tuple[Resolved, ...]
    filled: tuple[Filled, ...]
    shelf: Shelf
    remarks: Path = REMARKS

    @property
    def title(self) -> str:
        """Heading."""
        return f"{self.experiment.covers.capitalize()}: {self.experiment.title}"

    @property
    def keys(self) -> set[str]:
        """Of the cells of all parts."""
        return {spec.key() for one in self.found for spec in one.all_specs}

    @property
    def num_found(self) -> int:
        """Cells with a record that went well."""
        return sum(map(self.shelf.is_ok, self.keys))

    @property
    def paragraphs(self) -> list[str]:
        """Question, the paper's finding, and what this scale is."""
        return [
            self.experiment.question,
            f"The paper: {self.experiment.found}",
            f"Here ({self.scale} scale): {self.experiment.scale(self.scale).about}",
        ]

    def text(self, fmt: str) -> str:
        """As ``md``, ``latex``, ``html`` or ``csv``; what people remarked ends the first."""
        text = render_sheets(self.filled, fmt, self.title, self.paragraphs)
        remarks = self.remarks / f"paper-{self.experiment.id}.md"
        said = fmt == "md" and self.scale == "embedded" and remarks.exists()
        return text + (f"\n{remarks.read_text(encoding='utf-8')}" if said else "")

    def console(self) -> Group:
        """For the terminal."""
        lines = [escape(line) for line in (self.title, *self.paragraphs)]
        return Group(*lines, console_sheets(self.filled))


def report(
    experiment: Experiment,
    scale: ScaleName,
    found: Sequence[Resolved],
    shelf: Shelf,
    remarks: Path = REMARKS,
) -> Report:
    """Look up the records of an experiment.

    Args:
        experiment: from ``load_experiment``.
        scale: which size.
        found: its parts, from ``papers.resolve``.
        shelf: where records lie.
        remarks: folder of what people remarked.
    """
    filled = tuple(fill(sheet_of(one), shelf) for one in found)
    return Report(experiment, scale, tuple(found), filled, shelf, remarks)


def studies(root: Path) -> dict[str, Study]:
    """The experiments that any record is of, at the embedded scale, by their ids.

    Args:
        root: of a leaderboard, with ``records`` and ``remarks``.
    """
    found, shelf = dict[str, Study](), Shelf([root / "records"])
    for name in experiment_ids():
        one = load_experiment(name)
        made = report(one, "embedded", resolve(one, "embedded"), shelf, root / "remarks")
        if any(shelf.get(key) for key in made.keys):
            found[name] = Study(made.title, made.num_found, len(made.keys), made.text("md"))
    return found


def write_report(made: Report, folder: Path) -> list[Path]:
    """Write an experiment in all formats of text; the files."""
    stem = stem_of(made, folder)
    paths = []
    for fmt, ending in ENDINGS.items():
        paths.append(stem.with_name(stem.name + ending))
        write_text(paths[-1], made.text(fmt))
    return paths


def stem_of(made: Report, folder: Path) -> Path:
    """How the files of an experiment begin."""
    return folder / f"{made.experiment.id}-{made.scale}"


def write_figures(made: Report, folder: Path) -> list[Path]:
    """Write the figure of an experiment; no files where it has none or nothing is known yet.

    Raises:
        SolverBenchError: where matplotlib is missing.
    """
    stem = stem_of(made, folder)
    if made.experiment.plot is None:
        return []
    if made.experiment.plot != "samples":
        drawn = draw_figure(made.experiment.plot, made.filled, made.shelf)
        for ending, data in drawn.items():
            write_bytes(stem.with_name(stem.name + ending), data)
        return [stem.with_name(stem.name + ending) for ending in drawn]
    paths = []
    for one in made.found:
        for nfe in one.part.nfe:
            path = stem.with_name(f"{stem.name}-{one.part.name}-nfe{nfe:02d}.png")
            paths += [path] if _samples(one, nfe, made.shelf, path) else []
    return paths


def _samples(one: Resolved, nfe: int, shelf: Shelf, path: Path) -> bool:
    """Six seeds as they come and the six where GS and GAS differ most, a row a solver."""
    specs = {label: _first(found, nfe) for label, found in one.specs.items()}
    files = {label: shelf.tableau(spec.key()) for label, spec in specs.items() if spec}
    if not files or any(file is None for file in files.values()):
        return False
    shown = _chosen(one, shelf)
    images: list[tuple[str, Tensor]] = []
    for label, spec in specs.items():
        file = files.get(label)
        if spec and file:
            made = images_of(spec.backbone, Tableau.load(file), shown)
            images.append((f"{label} @ {spec.nfe}", made))
    write_png(path, labelled(images, max(1, 48 // images[0][1].shape[-1])))
    return True


def _first(specs: Sequence[RunSpec], nfe: int) -> RunSpec | None:
    """The cell of the first training seed at an NFE; of a teacher the one for that student."""
    own = [s for s in specs if s.nfe == nfe or (s.is_teacher and len(specs) == 1)]
    return min(own, key=lambda spec: spec.seed, default=None)


def _chosen(one: Resolved, shelf: Shelf) -> list[int]:
    """Evaluation seeds: the first six, then those where GS and GAS differ most in L1.

    Source: arXiv 2510.17699, appendix F: chosen at the smallest NFE, shown at all.
    """
    pair = [_first(one.specs.get(label, ()), min(one.part.nfe)) for label in ("GS", "GAS")]
    known = [spec for spec in pair if spec and shelf.tableau(spec.key())]
    if len(known) < 2:
        raise SolverBenchError(f"{one.part.title}: no solver files of GS and GAS to compare")
    seeds = range(known[0].evaluation.first_seed, known[0].evaluation.first_seed + NUM_SEARCHED)
    sets = []
    for spec in known:
        file = shelf.tableau(spec.key())
        assert file is not None
        sets.append(images_of(spec.backbone, Tableau.load(file), seeds))
    apart = (sets[0] - sets[1]).abs().flatten(1).mean(dim=1)
    most = torch.topk(apart, NUM_SHOWN).indices.tolist()
    return [*seeds[:NUM_SHOWN], *(seeds[i] for i in most)]
