"""The commands about the paper's tables and figures."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from solverbench.cli_parts import FETCH, QUIET, Group, numbers

SCALE = click.option(
    "--scale",
    type=click.Choice(["embedded", "published"]),
    default="embedded",
    show_default=True,
    help="Shipped networks, or the paper's own.",
)
FORMAT = click.option(
    "--format",
    "fmt",
    type=click.Choice(["console", "md", "latex", "html", "csv"]),
    default="console",
    show_default=True,
    help="Of what is printed.",
)
RECORDS = click.option(
    "--records", "folders", multiple=True, type=click.Path(path_type=Path), help="Folders to read."
)


@click.group(cls=Group)
def paper() -> None:
    """The tables and figures of arXiv 2510.17699: published and reproduced side by side."""


@paper.command("list")
@RECORDS
def list_(folders: tuple[Path, ...]) -> None:
    """List all tables and figures with their state: printed, reproduced here, runnable."""
    from solverbench.baselines.experiments import experiment_ids, load_experiment
    from solverbench.papers import ROOT, shelf_of, state_of

    shelf = shelf_of([*folders, ROOT])
    for name in experiment_ids():
        experiment = load_experiment(name)
        click.echo(f"{name:<8} {experiment.title} ({experiment.covers})")
        click.echo(f"{'':<8} {state_of(experiment, shelf).text()}")


@paper.command()
@click.argument("name")
@SCALE
@FORMAT
@RECORDS
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write it to, with figures.")
def show(name: str, scale: str, fmt: str, folders: tuple[Path, ...], out: Path | None) -> None:
    """Show what a table or figure asks, what the paper finds, and both sets of numbers.

    NAME is an id of `solverbench paper list`, a table (14b) or a figure (fig3).
    """
    from solverbench.baselines.experiments import load_experiment
    from solverbench.papers import ROOT, resolve, shelf_of
    from solverbench.reporting import report

    experiment = load_experiment(name)
    found = resolve(experiment, _scale(scale))
    made = report(experiment, _scale(scale), found, shelf_of([*folders, ROOT]))
    _print(made, fmt)
    if out is not None:
        _write(made, out)


@paper.command()
@click.argument("name")
@SCALE
@FORMAT
@click.option("--seeds", multiple=True, callback=numbers(0, 2**32 - 1), help="Of training.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of records [runs/paper].")
@click.option(
    "--reuse",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Folders whose finished cells are copied first, beside the shipped records.",
)
@click.option("--jobs", type=click.IntRange(1), help="Processes [a core each; 1 on a GPU].")
@click.option("--dry-run", is_flag=True, help="Say what it does, lacks and takes; stop.")
@FETCH
@QUIET
def run(name: str, scale: str, fmt: str, dry_run: bool, **choice: Any) -> None:
    """Run the experiment behind a table or figure and print it in the paper's form.

    Experiments share a folder, and cells that several need are run once. Finished cells, here,
    among the shipped records and in --reuse, are not run again.
    """
    from solverbench.baselines.experiments import load_experiment
    from solverbench.papers import ROOT, planned, resolve, reusable, reuse, run_parts, shelf_of
    from solverbench.progress import Bars
    from solverbench.reporting import report

    experiment, root = load_experiment(name), choice["out"] or ROOT
    found = resolve(experiment, _scale(scale), root, choice["seeds"])
    jobs = _jobs(choice["jobs"])
    shelf = shelf_of(choice["folders"])
    if dry_run:
        num = sum(1 for _ in reusable(found, root, shelf, experiment.needs_files))
        click.echo(f"{num} cells are taken over from finished records and counted below as open")
        for line in planned(found, root, jobs):
            click.echo(line)
        return
    _fetched(found, choice["fetch"], choice["quiet"])
    reuse(found, root, shelf, experiment.needs_files)
    try:
        with Bars(choice["quiet"]) as bars:
            good = run_parts(found, root, jobs, bars)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command continues where it was", err=True)
        sys.exit(130)
    made = report(experiment, _scale(scale), found, shelf_of([root]))
    _print(made, fmt)
    _write(made, root)
    sys.exit(0 if good else 1)


def _fetched(found: Any, fetch: bool, quiet: bool) -> None:
    """Have the published files that all parts need, or end with code 3 before anything starts."""
    from solverbench.cli import get_files
    from solverbench.inventory import files_of_run

    files = dict.fromkeys(name for one in found for r in one.recipes for name in files_of_run(r))
    get_files(tuple(files), fetch, quiet)


def _write(made: Any, root: Path) -> None:
    """All texts, then figures; without matplotlib a line instead of these."""
    from solverbench.errors import SolverBenchError
    from solverbench.reporting import write_figures, write_report

    paths = write_report(made, root)
    try:
        paths += write_figures(made, root)
    except SolverBenchError as error:
        click.echo(f"no figure: {error}", err=True)
    click.echo(f"wrote {', '.join(map(str, paths))}", err=True)


def _scale(name: str) -> Any:
    """Typed names of scales stay out of ``--help``."""
    return name


def _jobs(asked: int | None) -> Callable[[Any], int]:
    """Processes for a recipe."""
    from solverbench.cli import cores
    from solverbench.commands import jobs_of

    return lambda recipe: asked or jobs_of(recipe, cores())


def _print(made: Any, fmt: str) -> None:
    """A report on standard output."""
    from rich.console import Console

    if fmt != "console":
        click.echo(made.text(fmt), nl=False)
        return
    width = None if sys.stdout.isatty() else 160
    Console(width=width).print(made.console())
