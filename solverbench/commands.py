"""What the commands do: recipes to cells to records to tables and pictures."""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from rich.console import Console
from rich.progress import track
from torch import Tensor

from solverbench import registry, weights
from solverbench.baselines.recipe import Recipe, cells, load_recipe, recipe_names
from solverbench.benchmark.estimate import (
    GRADIENT,
    Rates,
    estimate,
    measured_rates,
    price_rates,
    size_of,
)
from solverbench.benchmark.features import quantised
from solverbench.benchmark.folders import write_folder
from solverbench.benchmark.launch import Listener, cost_of, plan, run_all, title_of
from solverbench.benchmark.load import is_learnable, load_backbone, load_solver
from solverbench.benchmark.results import Result
from solverbench.benchmark.run import Run
from solverbench.benchmark.spec import EXACT, FAST, Named, RunSpec
from solverbench.benchmark.store import StoredInfluences, read_records
from solverbench.errors import MissingWeightsError, SolverBenchError
from solverbench.files import write_text
from solverbench.inventory import files_of_run
from solverbench.leaderboards.render import console, render
from solverbench.pictures import labelled, tile, write_png
from solverbench.solvers.base import LearnableSolver
from solverbench.solvers.tableau import Tableau, sample

DEFAULT = "cifar16"
TABLES = {"md": "table.md", "csv": "table.csv", "latex": "table.tex"}
EXTRAS = {"lpips": "lpips", "diffusers": "sd", "transformers": "sd"}  # package: extra of ours
PICTURE_SIDE = 96  # pixels of an image in a grid, at most


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the command line changes in a recipe; empty means unchanged.

    Attributes:
        solvers: rows to run; those of the recipe keep their options and budgets.
        backbone: plugin.
        nfe: columns.
        seeds: of training.
        num_images: to measure with.
        overrides: ``a.b=c``.
        fast: whether the network is run with what ``FAST`` switches on.
        max_memory: of a training step, such as ``6GB``.
        micro_batch: training pairs worked on at once.
    """

    solvers: tuple[str, ...] = ()
    backbone: str | None = None
    nfe: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    num_images: int | None = None
    overrides: tuple[str, ...] = ()
    fast: bool = False
    max_memory: str | None = None
    micro_batch: int | None = None


def chosen_recipe(name: str | None, choice: Choice) -> Recipe:
    """The recipe to run: the named one, else the backbone's own, else the default.

    Raises:
        SolverBenchError: where it is unknown or wrong.
    """
    own = choice.backbone if choice.backbone in recipe_names() else DEFAULT
    return load_recipe(name or own, choice.overrides, lambda data: _edit(data, choice))


def _edit(data: dict[str, Any], choice: Choice) -> None:
    """Lay what the command line asks for over a recipe's plain data."""
    if choice.num_images is not None:
        data["evaluation"] = (data.get("evaluation") or {}) | {"num_images": choice.num_images}
    _hold(data, choice)
    if choice.backbone is not None and choice.backbone != _name(data.get("backbone")):
        data["backbone"] = choice.backbone
    if choice.solvers:
        entries = data.get("solvers") or ()
        data["solvers"] = [
            entry
            for name in choice.solvers
            for entry in [e for e in entries if _name(e) == name] or [name]
        ]
    if choice.nfe:
        data["nfe"] = list(choice.nfe)
        entries = data.get("solvers") or ()
        data["solvers"] = [e | {"nfe": None} if isinstance(e, dict) else e for e in entries]
    if choice.seeds:
        data["seeds"] = list(choice.seeds)
    if choice.fast:
        own = data.get("network") or {}
        data["network"] = own | FAST.model_dump() if isinstance(own, dict) else own


def _hold(data: dict[str, Any], choice: Choice) -> None:
    """Set how much of a training step is held at once, for the recipe and for rows of their own."""
    held = {"max_memory": choice.max_memory, "micro_batch": choice.micro_batch}
    asked = {key: value for key, value in held.items() if value is not None}
    if asked:
        fit = data.get("fit")
        data["fit"] = _others(fit, asked) | asked if isinstance(fit or {}, dict) else fit
        for entry in data.get("solvers") or ():
            if isinstance(entry, dict) and isinstance(entry.get("fit"), dict):
                entry["fit"] = _others(entry["fit"], asked)


def _others(fit: dict[str, Any] | None, asked: dict[str, Any]) -> dict[str, Any]:
    """A budget without what gives way to the command line's words on what is held at once."""
    all_three = {"memory", "micro_batch", "max_memory"}
    gone = all_three if "max_memory" in asked else asked.keys()
    return {key: value for key, value in (fit or {}).items() if key not in gone}


def _name(plugin: object) -> object:
    return plugin.get("name") if isinstance(plugin, dict) else plugin


def specs_of(recipe: Recipe) -> list[RunSpec]:
    """The cells of a recipe."""
    return cells(recipe, is_learnable)


def run_recipe(recipe: Recipe, root: Path, num_workers: int, listen: Listener) -> list[Result]:
    """Run what is missing, then write the tables and the picture of the folder.

    Args:
        recipe: what to run.
        root: folder of records.
        num_workers: processes.
        listen: told of progress.

    Returns:
        The records of the recipe's cells.
    """
    specs = specs_of(recipe)
    check_packages(recipe)
    fresh = any(Run(spec, root).done() is None for spec in specs)
    results = run_all(specs, root, num_workers, listen)
    for fmt, name in TABLES.items():
        if fresh or not (root / name).exists():
            write_text(root / name, render(read_records(root), fmt, None, StoredInfluences(root)))
    picture = root / f"{recipe.name}.png"
    if fresh or not picture.exists():
        draw(results, root, recipe.grid, picture)
    return results


def jobs_of(recipe: Recipe, cores: int) -> int:
    """Processes by default: one a core, or a single one where the backbone is on a GPU."""
    return cores if str(recipe.backbone.options.get("device", "cpu")) == "cpu" else 1


def check_packages(recipe: Recipe) -> None:
    """Refuse a recipe that needs optional packages which are not installed.

    Raises:
        SolverBenchError: names them, and the command that installs them.
    """
    wanted = {*getattr(registry.backbones.get(recipe.backbone.name), "packages", ())}
    fits = [recipe.fit, *(entry.fit for entry in recipe.solvers)]
    readers = [*recipe.evaluation.metrics, *(fit.distance for fit in fits if fit is not None)]
    if any(name.startswith("lpips") for name in readers):
        wanted.add("lpips")
    absent = sorted(name for name in wanted if importlib.util.find_spec(name) is None)
    if absent:
        extras = ",".join(sorted({EXTRAS[name] for name in absent}))
        raise SolverBenchError(
            f"recipe {recipe.name} needs packages that are not installed: {', '.join(absent)}; "
            f"pip install 'solverbench[{extras}]'"
        )


def dry_run(recipe: Recipe, root: Path, jobs: int) -> tuple[list[str], SolverBenchError | None]:
    """What a run would do and take, and why it could not.

    Args:
        recipe: what to run.
        root: folder of records.
        jobs: processes.

    Returns:
        Lines for people, and the error that the run would end with at once, if any.
    """
    specs, lines = specs_of(recipe), described(recipe)
    missing = tuple(name for name in files_of_run(recipe) if not weights.present(name))
    fault: SolverBenchError | None = None
    todo = specs
    try:
        if missing:
            raise MissingWeightsError(missing)
        check_packages(recipe)
        parts, cells = plan(specs, root)
        todo = [job.spec for job in cells]
        titles = [(job.title, job.cost) for job in parts + cells]
    except SolverBenchError as error:
        fault, titles = error, [(title_of(spec), cost_of(spec)) for spec in specs]
    lines += [f"{title:<28} cost {cost:>12,.0f}" for title, cost in titles]
    lines.append(
        "cost: network evaluations of fits and samples, one a sample and call (guidance makes each "
        f"two network rows); one with gradients counts as {GRADIENT:g}"
    )
    if fault is None:
        lines.append(f"{len(specs) - len(todo)} of {len(specs)} cells are finished in {root}")
    lines += [f"missing: {_shortage(name, recipe.backbone.name)}" for name in missing]
    extractor = getattr(registry.backbones.get(recipe.backbone.name), "extractor", None)
    if extractor is not None and extractor not in registry.extractors.names():
        lines.append(f"missing: extractor {extractor}, no plugin has it: nothing can be measured")
    rates = _rates(recipe.backbone, fault is None)
    if rates is not None and todo:
        lines += ["estimate:", *estimate(todo, rates, jobs).lines()]
    return lines, fault


def described(recipe: Recipe) -> list[str]:
    """A recipe as it was understood, a line a part."""
    evaluation, specs = recipe.evaluation, specs_of(recipe)
    nfe = (
        recipe.teacher.nfe if recipe.teacher_above is None else f"student + {recipe.teacher_above}"
    )
    budgets: dict[str, list[str]] = {}
    for spec in specs:
        if spec.fit is not None:
            names = budgets.setdefault(_values(spec.fit), [])
            names += [] if spec.solver.name in names else [spec.solver.name]
    last = evaluation.first_seed + evaluation.num_images - 1
    return [
        f"{recipe.name}: {recipe.about}",
        f"backbone    {_plugin(recipe.backbone)}",
        f"teacher     {_plugin(recipe.teacher.solver)} @ {nfe}",
        *([] if recipe.network == EXACT else [f"network     {recipe.network}"]),
        *(f"fit         {', '.join(names)}: {values}" for values, names in budgets.items()),
        f"evaluation  {', '.join(evaluation.metrics)} of {evaluation.num_images} images, seeds "
        f"{evaluation.first_seed} to {last}, batch {evaluation.batch}",
    ]


def _plugin(named: Named) -> str:
    options = ", ".join(f"{key}={value}" for key, value in named.options.items())
    return f"{named.name} ({options})" if options else named.name


def _values(model: BaseModel) -> str:
    return ", ".join(f"{key} {value}" for key, value in model.model_dump().items())


def _shortage(name: str, backbone: str) -> str:
    """A missing file: its size where that is known, and how to get it."""
    item = weights.catalogue()[name]
    price = getattr(registry.backbones.get(backbone), "price", None)
    if item.size:
        size = size_of(item.size)
    elif item.roughly:
        size = f"about {size_of(item.roughly)}"
    elif item.kind == "backbone" and price is not None:
        size = f"at least {size_of(4 * price.parameters)}"  # in float32
    else:
        size = "size not stated"
    return f"{name:<30} {size:<16} solverbench weights fetch {name}"


def _rates(backbone: Named, usable: bool) -> Rates | None:
    """Costs of a backbone: counted where it is published, measured where it can be loaded."""
    measured = None
    if usable:
        measured = measured_rates(load_backbone(backbone.name, **backbone.options))
    price = getattr(registry.backbones.get(backbone.name), "price", None)
    return measured if price is None else price_rates(price, measured)


def draw(results: Sequence[Result], root: Path, num: int, path: Path) -> None:
    """Samples of the same seeds: the teacher, then each solver at its smallest NFE."""
    good = [r for r in results if r.status == "ok" and Run(r.spec, root).tableau_path.exists()]
    rows = [r for r in good if r.spec.is_teacher]
    for title in dict.fromkeys(r.title for r in good if not r.spec.is_teacher):
        own = [r for r in good if r.title == title and not r.spec.is_teacher]
        rows.append(min(own, key=lambda r: (r.spec.nfe, r.spec.seed)))
    if not rows:
        return
    pictures = []
    for result in rows:
        tableau = Tableau.load(Run(result.spec, root).tableau_path)
        first = result.spec.evaluation.first_seed
        images = images_of(result.spec.backbone, tableau, range(first, first + num))
        kind = "teacher: " if result.spec.is_teacher else ""
        pictures.append((f"{kind}{result.title} @ {result.spec.nfe}", images))
    write_png(path, labelled(pictures, _scale(pictures[0][1])))


@torch.no_grad()
def images_of(named: Named, tableau: Tableau, seeds: Sequence[int]) -> Tensor:
    """Decoded images (M, C, H, W) of some seeds, on the host; shows its progress."""
    backbone = load_backbone(named.name, **named.options)
    parts = [seeds[i : i + 64] for i in range(0, len(seeds), 64)]
    images = []
    screen = Console(stderr=True)
    quiet = not screen.is_terminal
    for part in track(parts, "sampling", console=screen, transient=True, disable=quiet):
        noise, condition = backbone.noise(part), backbone.condition(part)
        images.append(backbone.decode(sample(backbone, tableau, noise, condition)).cpu())
    return torch.cat(images)


def sample_to(
    path: Path,
    source: str,
    backbone: Named,
    nfe: int | None,
    options: dict[str, Any],
    seeds: Sequence[int],
    folder: Path | None = None,
) -> Tableau:
    """Write a grid of samples, and on demand each of them.

    Args:
        path: PNG to write.
        source: name of a solver, or a tableau file.
        backbone: plugin.
        nfe: for a solver; a tableau knows its own.
        options: of the solver.
        seeds: one image each.
        folder: of a PNG for each seed, which ``solverbench evaluate`` reads.

    Returns:
        What was sampled with.

    Raises:
        SolverBenchError: where the two do not fit, or the solver is not trained.
    """
    if path.is_dir():
        raise SolverBenchError(f"{path} is a folder; --out names a PNG file")
    tableau = tableau_of(source, backbone, nfe, options)
    images = images_of(backbone, tableau, seeds)
    columns = round(len(images) ** 0.5) or 1
    write_png(path, tile(images, columns, _scale(images)))
    if folder is not None:
        _write_each(folder, images, backbone.name, seeds)
    return tableau


def _write_each(folder: Path, images: Tensor, backbone: str, seeds: Sequence[int]) -> None:
    """A PNG for each seed, 8 bits by the convention of the backbone."""
    try:
        pixels = quantised(images, registry.backbones.get(backbone).quantisation)
        write_folder(folder, pixels, seeds)
    except ValueError as error:  # not finite, or neither grey nor in colours
        raise SolverBenchError(f"no PNG of these samples: {error}") from error


def tableau_of(source: str, backbone: Named, nfe: int | None, options: dict[str, Any]) -> Tableau:
    """A tableau from a file, or traced from a training-free solver.

    Raises:
        SolverBenchError: where neither exists, or something is missing or too much.
    """
    if source.endswith(".safetensors") or "/" in source:
        if options or nfe is not None:
            raise SolverBenchError("a tableau file has its own nfe and options; leave them away")
        return Tableau.load(source)
    if nfe is None:
        raise SolverBenchError("--nfe is needed with a solver's name, for example --nfe 6")
    solver = load_solver(source, load_backbone(backbone.name, **backbone.options), nfe, **options)
    if isinstance(solver, LearnableSolver):
        raise SolverBenchError(
            f"{source} must be trained first: solverbench run --solver {source} --nfe {nfe}, "
            "then sample the .safetensors file beside its record"
        )
    return solver.tableau()


def _scale(images: Tensor) -> int:
    return max(1, PICTURE_SIDE // images.shape[-1] // 2)


def show(results: Sequence[Result], root: Path, as_json: bool, width: int | None) -> None:
    """Print records as tables, or as one JSON document."""
    screen = Console(width=width)
    if as_json:
        sys.stdout.write(json.dumps([r.model_dump(mode="json") for r in results], indent=1) + "\n")
        return
    screen.print(console(results, None, StoredInfluences(root)))
    names = ", ".join(sorted(path.name for path in root.iterdir() if path.is_file()))
    screen.print(f"In {root}: {names}; one record and one solver a cell.", highlight=False)
