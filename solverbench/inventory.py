"""What there is: plugins, schedules and recipes, tableaus on disk, and the machine."""

import importlib.util
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from solverbench import registry, weights
from solverbench.baselines.recipe import Recipe, load_recipe, recipe_names
from solverbench.benchmark.conformance import (
    Check,
    check_backbone,
    check_metric,
    check_schedule,
    check_solver,
)
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.lpips import trunk_path
from solverbench.benchmark.spec import Named
from solverbench.errors import SolverBenchError, unknown_name
from solverbench.schedule import GRIDS
from solverbench.solvers.tableau import Tableau, sample
from solverbench.stored_schedules import STORED_SIGMAS

REGISTRIES = {
    "solvers": registry.solvers,
    "schedules": registry.schedules,
    "backbones": registry.backbones,
    "metrics": registry.metrics,
    "distances": registry.distances,
    "extractors": registry.extractors,
}


def inventory(kind: str) -> list[dict[str, str]]:
    """Name, one line and origin of everything of a kind."""
    if kind == "recipes":
        ours = [(name, load_recipe(name).about) for name in recipe_names()]
        return [{"name": name, "about": about, "package": "solverbench"} for name, about in ours]
    if kind == "schedules":
        lines = {name: f"default rho {rho:g}" for name, (_, rho) in GRIDS.items()}
        lines |= {name: source for name, (_, _, source) in STORED_SIGMAS.items()}
        named = [{"name": n, "about": a, "package": "solverbench"} for n, a in lines.items()]
        return named + _plugins_of(registry.schedules)
    rows = _plugins_of(REGISTRIES[kind])
    if kind == "backbones":
        for row in rows:
            row["missing"] = " ".join(_missing(row["name"]))
    return rows


def files_of(backbone: Named) -> tuple[str, ...]:
    """Published files that a backbone is read from; none where the user names one."""
    kind = registry.backbones.get(backbone.name)
    named = backbone.options.get("weights") is not None
    return () if named else tuple(getattr(kind, "needs", ()))


def files_of_run(recipe: Recipe) -> tuple[str, ...]:
    """Published files that a recipe needs: of the backbone, its measurement, losses and solvers."""
    kind = registry.backbones.get(recipe.backbone.name)
    found = [*files_of(recipe.backbone), *getattr(kind, "measured_by", ())]
    fits = [recipe.fit, *(entry.fit for entry in recipe.solvers)]
    readers = [*recipe.evaluation.metrics, *(fit.distance for fit in fits if fit is not None)]
    if any(name.startswith("lpips") for name in readers):
        try:
            trunk_path()
        except SolverBenchError:
            found.append("vgg16")
    options = [value for entry in recipe.solvers for value in entry.options.values()]
    found += [v for v in options if isinstance(v, str) and v in weights.catalogue()]
    return tuple(dict.fromkeys(found))


def _missing(name: str) -> list[str]:
    """Files that a backbone lacks."""
    return [file for file in _needs(name) if not weights.present(file)]


def _plugins_of(plugins: registry.Registry[Any]) -> list[dict[str, str]]:
    return [
        {"name": name, "about": _about_plugin(plugins, name), "package": plugins.package(name)}
        for name in plugins.names()
    ]


def _about_plugin(plugins: registry.Registry[Any], name: str) -> str:
    try:
        return _about(plugins.get(name))
    except SolverBenchError as error:
        return f"BROKEN: {error}"


def _about(kind: Any) -> str:
    """Title and source where there are any, else the first line of the docstring."""
    line = (kind.__doc__ or "").strip().partition("\n")[0]
    source = getattr(kind, "source", "")
    return f"{kind.title}: {source}" if source else line


def check_plugin(name: str, options: Mapping[str, Any] | None = None) -> list[Check]:
    """Conformance of a plugin, whichever kind carries the name.

    Args:
        name: of the plugin.
        options: of a backbone, such as its weights; none by default.

    Raises:
        SolverBenchError: where none carries it, or options are given for what is no backbone.
    """
    if name in registry.backbones.names():
        return list(check_backbone(name, **(options or {})))
    if options:
        raise SolverBenchError(f"'{name}' is no backbone; leave --backbone-option away")
    checks = {
        "solvers": check_solver,
        "schedules": check_schedule,
        "metrics": check_metric,
    }
    for kind, run in checks.items():
        if name in REGISTRIES[kind].names():
            return list(run(name))
    for kind, plugins in REGISTRIES.items():
        if name in plugins.names():
            raise SolverBenchError(
                f"'{name}' is one of the {kind}; checks are for backbones, {', '.join(checks)}"
            )
    names = [n for kind in ("backbones", *checks) for n in REGISTRIES[kind].names()]
    raise unknown_name("plugin", name, names, "solverbench list")


def tableau_facts(path: Path) -> dict[str, Any]:
    """A tableau file as JSON values."""
    tableau = Tableau.load(path)
    numbers = {
        "A": tableau.A.tolist(),
        "tau": tableau.tau.tolist(),
        "nodes": tableau.nodes.tolist(),
    }
    return {"meta": tableau.meta, **numbers}


def tableau_tables(path: Path) -> Group:
    """A tableau file for the terminal: facts, then a row a state."""
    tableau, facts = Tableau.load(path), Table(show_header=False, box=None)
    for key, value in tableau.meta.items():
        if key != "untrained":  # a table of its own; --json has it
            facts.add_row(key, str(value))
    rows = Table(title="state = A0 noise + A1 e0 + A2 e1 + ...", title_justify="left")
    columns = ["call", "t", *("noise" if k == 0 else f"e{k - 1}" for k in range(tableau.nfe + 1))]
    for column in columns:
        rows.add_column(column, justify="right")
    times = [f"{t:.6f}" for t in tableau.tau.tolist()]
    for j, row in enumerate(tableau.A.tolist()):
        name, time_ = (str(j), times[j]) if j < tableau.nfe else ("sample", "")
        shown = [f"{a:.6f}" if k <= j else "" for k, a in enumerate(row)]
        rows.add_row(name, time_, *shown)
    return Group(facts, rows)


def facts_table(facts: dict[str, Any]) -> Table:
    """Facts for the terminal, one a row."""
    rows = Table(show_header=False, box=None)
    for key, value in facts.items():
        listed = isinstance(value, dict)
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if listed else str(value)
        rows.add_row(Text(key), f"{value:,}" if isinstance(value, int) else Text(text))
    return rows


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis."""

    what: str
    good: bool
    detail: str


def diagnose() -> list[Finding]:
    """Versions, processors, memory, plugins, embedded backbones and optional packages."""
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "none; everything embedded runs on the CPU"
    found = [
        Finding("python", True, platform.python_version()),
        Finding("torch", True, torch.__version__),
        Finding("cpu", True, f"{os.cpu_count()} cores, {_memory() / 2**30:.0f} GiB"),
        Finding("cuda", cuda, device),
    ]
    found += [_backbone(name) for name in registry.backbones.names() if not _needs(name)]
    found.append(_published())
    found += [_plugins(kind) for kind in REGISTRIES]
    extras = {
        "sklearn": "train (digits)",
        "pytest_benchmark": "bench",
        "scipy": "schedules (dmn)",
        "lpips": "lpips (distance lpips), with file vgg16 (solverbench weights)",
    }
    for module, what in extras.items():
        here = importlib.util.find_spec(module) is not None
        found.append(Finding(f"extra {module}", here, f"for {what}"))
    return found


def _needs(name: str) -> tuple[str, ...]:
    """Published files of a backbone; none for one that cannot be imported."""
    try:
        return files_of(Named(name=name))
    except SolverBenchError:
        return ()


def _published() -> Finding:
    """Which backbones of published files are here; none is loaded, for they are large."""
    lacking = {n: gone for n in registry.backbones.names() if (gone := _missing(n))}
    named = ", ".join(n for n in registry.backbones.names() if _needs(n) and n not in lacking)
    if not lacking:
        return Finding("published files", True, f"here for {named or 'no backbone'}")
    files = " ".join(dict.fromkeys(file for gone in lacking.values() for file in gone))
    said = f"{', '.join(lacking)} lack files; solverbench weights fetch {files}"
    return Finding("published files", False, f"here for {named}; {said}" if named else said)


def _backbone(name: str) -> Finding:
    """Load a backbone and time four evaluations of 64 samples."""
    try:
        backbone = load_backbone(name)
        tableau = load_solver("ddim", backbone, 4).tableau()
        noise, condition = backbone.noise(range(64)), backbone.condition(range(64))
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            with torch.no_grad():
                sample(backbone, tableau, noise, condition)
            seconds.append(time.perf_counter() - start)
    except SolverBenchError as error:
        any_file = str(error).startswith(f"{name} needs weights=")
        return Finding(name, any_file, str(error))
    return Finding(name, True, f"{64 * 4 / min(seconds):,.0f} evaluations a second")


def _plugins(kind: str) -> Finding:
    broken = []
    for name in REGISTRIES[kind].names():
        try:
            REGISTRIES[kind].get(name)
        except SolverBenchError as error:
            broken.append(str(error))
    count = len(REGISTRIES[kind].names())
    return Finding(kind, not broken, "; ".join(broken) or f"{count} plugins")


def _memory() -> int:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0
