"""The command line: parses, calls one function, prints. Slow imports stay inside the commands."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from solverbench.errors import SolverBenchError, unknown_name

MAX_RANGE = 100_000  # numbers that one word may stand for
KINDS = ("solvers", "backbones", "metrics", "distances", "extractors", "schedules", "recipes")
BACKBONE = click.option("--backbone", default="cifar16", show_default=True, help="Plugin.")
QUIET = click.option("--quiet", is_flag=True, help="No progress.")


class Group(click.Group):
    """Prints our own errors in one line and exits with code 2; all else keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except SolverBenchError as error:
            _fail(ctx, str(error))
        except NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "solverbench"
            _fail(ctx, f"{error.format_message()} See: {path} --help")


def _fail(ctx: click.Context, message: str) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    ctx.exit(2)


def numbers(least: int, most: int) -> Callable[..., tuple[int, ...]]:
    """A callback for lists such as ``4,6,8`` or ``0-63``, possibly repeated."""

    def parse(ctx: click.Context, parameter: click.Parameter, value: Any) -> tuple[int, ...]:
        found: list[int] = []
        for word in words(ctx, parameter, (value,) if isinstance(value, str) else value):
            low, dash, high = word.partition("-")
            ends = [int(end) for end in (low, high if dash else low) if end.isdecimal()]
            if len(ends) < 2 or not least <= ends[0] <= ends[1] <= most:
                raise click.BadParameter(
                    f"{word!r} is no whole number from {least} to {most}; write 4,6,8 or 0-63"
                )
            found += range(ends[0], min(ends[1], ends[0] + MAX_RANGE) + 1)
        return tuple(dict.fromkeys(found))

    return parse


def words(
    ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    """A callback for lists of names, comma-separated or repeated."""
    return tuple(word.strip() for part in value for word in part.split(",") if word.strip())


def _width() -> int | None:
    """Of tables: the terminal's; wide enough for all metrics where there is none."""
    return None if sys.stdout.isatty() else 140


def options_of(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``key=value`` words as a mapping; values are YAML."""
    from solverbench.baselines.recipe import parse_yaml

    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise SolverBenchError(f"option '{pair}': write key=value, for example variant=bh2")
        found[key] = parse_yaml(value, f"option '{pair}'")
    return found


@click.group(cls=Group)
@click.version_option(package_name="solverbench")
def main() -> None:
    """Train, measure and rank few-step diffusion solvers."""


@main.command("list")
@click.argument("kind", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def list_(kind: str | None, as_json: bool) -> None:
    """List solvers, backbones, metrics, distances, extractors, schedules or recipes."""
    from solverbench.inventory import inventory

    if kind is not None and kind not in KINDS:
        raise unknown_name("kind", kind, KINDS, ", ".join(KINDS))
    found = {name: inventory(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        click.echo(json.dumps(found[kind] if kind else found, indent=1))
        return
    for name, rows in found.items():
        click.echo(f"{name}:")
        for row in rows:
            click.echo(f"  {row['name']:<24} {row['about']}")


@main.command()
@click.argument("recipe", required=False)
@click.option("--solver", "solvers", multiple=True, callback=words, help="Rows, comma-separated.")
@click.option("--backbone", help="Plugin; the recipe's by default.")
@click.option("--nfe", multiple=True, callback=numbers(1, 4096), help="Columns, such as 4,6.")
@click.option(
    "--seeds", multiple=True, callback=numbers(0, 2**32 - 1), help="Of training, such as 0-2."
)
@click.option("--num-images", type=click.IntRange(2), help="Samples to measure with.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of records [runs/RECIPE].")
@click.option("--set", "overrides", multiple=True, help="Any key of the recipe: a.b=c.")
@click.option("--jobs", type=click.IntRange(1), help="Processes; the number of cores by default.")
@click.option("--dry-run", is_flag=True, help="List the cells and stop.")
@click.option("--json", "as_json", is_flag=True, help="Records as one JSON document.")
@QUIET
def run(
    recipe: str | None,
    out: Path | None,
    jobs: int | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **choice: Any,
) -> None:
    """Run a recipe: train, sample, measure, and print the table.

    RECIPE is a name (solverbench list recipes) or a YAML file; cifar16 by default. Finished cells
    are not run again.
    """
    from solverbench.commands import Choice, chosen_recipe, run_recipe, show, specs_of
    from solverbench.progress import Bars

    chosen = chosen_recipe(recipe, Choice(**choice))
    root = out or Path("runs") / chosen.name
    if dry_run:
        show_cells(specs_of(chosen), root, as_json)
        return
    try:
        with Bars(quiet) as bars:
            results = run_recipe(chosen, root, jobs or cores(), bars)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command continues where it was", err=True)
        sys.exit(130)
    show(results, root, as_json, _width())
    if any(result.status == "failed" for result in results):
        sys.exit(1)


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def show_cells(specs: list[Any], root: Path, as_json: bool) -> None:
    """Print what a run would do."""
    from solverbench.benchmark.launch import plan

    parts, cells = plan(specs, root)
    if as_json:
        click.echo(json.dumps([spec.model_dump(mode="json") for spec in specs], indent=1))
        return
    for job in parts + cells:
        click.echo(f"{job.title:<28} cost {job.cost:>12,.0f}")
    click.echo("cost: network rows of fit and samples; a row with gradients counts as 3.5")
    click.echo(f"{len(specs) - len(cells)} of {len(specs)} cells are finished in {root}")


@main.command()
@click.argument("source")
@BACKBONE
@click.option("--nfe", type=click.IntRange(1), help="With a solver's name.")
@click.option(
    "--seeds",
    default="0-63",
    show_default=True,
    callback=numbers(0, 2**32 - 1),
    help="One image each.",
)
@click.option("--option", "pairs", multiple=True, help="Of the solver: key=value.")
@click.option("--backbone-option", "others", multiple=True, help="Of the backbone: key=value.")
@click.option("--out", type=click.Path(path_type=Path), default="samples.png", show_default=True)
def sample(
    source: str,
    backbone: str,
    nfe: int | None,
    seeds: tuple[int, ...],
    pairs: tuple[str, ...],
    others: tuple[str, ...],
    out: Path,
) -> None:
    """Write a grid of samples; SOURCE is a solver's name or a tableau file."""
    from solverbench.benchmark.spec import Named
    from solverbench.commands import sample_to

    named = Named(name=backbone, options=options_of(others))
    tableau = sample_to(out, source, named, nfe, options_of(pairs), seeds)
    click.echo(f"{len(seeds)} samples of {tableau.meta['title']}, {tableau.nfe} NFE, in {out}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format", "fmt", default="console", show_default=True, help="console, md, csv, latex."
)
@click.option("--metric", "metrics", multiple=True, callback=words, help="Which, in this order.")
def table(folder: Path, fmt: str, metrics: tuple[str, ...]) -> None:
    """Print the tables of a folder of records."""
    from rich.console import Console

    from solverbench.benchmark.store import read_records
    from solverbench.leaderboards.render import console, render

    results = read_records(folder)
    if fmt == "console":
        Console(width=_width()).print(console(results, metrics or None))
    else:
        click.echo(render(results, fmt, metrics or None), nl=False)


@main.command()
@click.argument("name")
def check(name: str) -> None:
    """Check that a solver, backbone or metric plugin keeps its contract (on the CPU)."""
    from solverbench.inventory import check_plugin

    failed = 0
    for done in check_plugin(name):
        failed += not done.passed
        click.echo(f"{'ok  ' if done.passed else 'FAIL'} {done.title}: {done.detail}")
    if failed:
        click.echo(f"{name}: {failed} checks failed", err=True)
        sys.exit(1)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def show(file: Path, as_json: bool) -> None:
    """Show a tableau: where it comes from, its times and coefficients."""
    from solverbench.inventory import tableau_facts, tableau_tables

    if as_json:
        click.echo(json.dumps(tableau_facts(file), indent=1))
        return
    from rich.console import Console

    Console(width=_width()).print(tableau_tables(file))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def doctor(as_json: bool) -> None:
    """Say what this machine can run, how fast, and what is missing."""
    from solverbench.inventory import diagnose

    rows = diagnose()
    if as_json:
        click.echo(json.dumps([row.__dict__ for row in rows], indent=1))
    else:
        for row in rows:
            click.echo(f"{'ok     ' if row.good else 'MISSING'} {row.what:<18} {row.detail}")


@main.group(cls=Group)
def backbone() -> None:
    """Make the embedded backbones anew."""


@backbone.command()
@click.argument("name")
@click.option("--data", type=click.Path(path_type=Path), help="Images: a tar or folder.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder [backbones/NAME].")
@click.option("--num-images", type=click.IntRange(1000), help="Length of training, images seen.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@QUIET
def train(
    name: str,
    data: Path | None,
    out: Path | None,
    num_images: int | None,
    threads: int,
    quiet: bool,
) -> None:
    """Train denoiser and extractor of digits or cifar16; continues where it was stopped."""
    from solverbench.making import make_backbone

    folder = out or Path("backbones") / name
    facts = make_backbone(name, data, folder, num_images, threads, quiet)
    click.echo(f"{name}: FD of the teacher {facts['teacher_fd']:.2f}; weights and card in {folder}")


@backbone.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="Folder [backbones/NAME].")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@QUIET
def discriminator(name: str, out: Path | None, threads: int, quiet: bool) -> None:
    """Train the discriminator that GAS starts from with the option `pretrained`."""
    from solverbench.making import make_adversary

    folder = out or Path("backbones") / name
    facts = make_adversary(name, folder, threads, quiet)
    shares = ", ".join(f"{key} {value:.2f}" for key, value in facts["told_apart"].items())
    click.echo(f"{name}: weights in {folder}; told apart from the teacher's samples: {shares}")
