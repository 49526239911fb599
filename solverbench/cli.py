"""The command line: parses, calls one function, prints. Slow imports stay inside the commands."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from solverbench.cli_compare import compare
from solverbench.cli_import import import_
from solverbench.cli_leaderboard import leaderboard, submit, validate
from solverbench.cli_measure import evaluate, reference
from solverbench.cli_paper import paper
from solverbench.cli_parts import BACKBONE, FETCH, QUIET, Group, numbers, options_of, words
from solverbench.cli_profile import profile
from solverbench.cli_verify import verify
from solverbench.cli_weights import weights
from solverbench.errors import unknown_name

FAST_HELP = "Run the network faster where tables cannot tell: network.channels_last. Rows say so."
KINDS = ("solvers", "backbones", "metrics", "distances", "extractors", "schedules", "recipes")


def _width() -> int | None:
    """Of tables: the terminal's; wide enough for all metrics where there is none."""
    return None if sys.stdout.isatty() else 140


@click.group(cls=Group)
@click.version_option(package_name="solverbench")
def main() -> None:
    """Train, measure and rank few-step diffusion solvers."""


for command in (
    weights,
    import_,
    compare,
    evaluate,
    reference,
    verify,
    profile,
    paper,
    leaderboard,
    submit,
    validate,
):
    main.add_command(command)


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
            lacking = f" [missing: {row['missing']}]" if row.get("missing") else ""
            click.echo(f"  {row['name']:<24} {row['about']}{lacking}")


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
@click.option("--fast", is_flag=True, help=FAST_HELP)
@click.option("--max-memory", help="Of a training step, such as 6GB: the quickest way that fits.")
@click.option("--micro-batch", type=click.IntRange(1), help="Training pairs worked on at once.")
@click.option("--jobs", type=click.IntRange(1), help="Processes [a core each; 1 on a GPU].")
@click.option("--dry-run", is_flag=True, help="Say what it does, lacks and takes; stop.")
@click.option("--json", "as_json", is_flag=True, help="Records as one JSON document.")
@FETCH
@QUIET
def run(
    recipe: str | None,
    out: Path | None,
    jobs: int | None,
    dry_run: bool,
    as_json: bool,
    fetch: bool,
    quiet: bool,
    **choice: Any,
) -> None:
    """Run a recipe: train, sample, measure, and print the table.

    RECIPE is a name (solverbench list recipes) or a YAML file; cifar16 by default. Finished cells
    are not run again.
    """
    from solverbench.commands import Choice, chosen_recipe, jobs_of, run_recipe, show
    from solverbench.inventory import files_of_run
    from solverbench.progress import Bars

    chosen = chosen_recipe(recipe, Choice(**choice))
    root = out or Path("runs") / chosen.name
    jobs = jobs or jobs_of(chosen, cores())
    if dry_run:
        show_plan(chosen, root, jobs, as_json)
        return
    get_files(files_of_run(chosen), fetch, quiet)
    try:
        with Bars(quiet) as bars:
            results = run_recipe(chosen, root, jobs, bars)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command continues where it was", err=True)
        sys.exit(130)
    show(results, root, as_json, _width())
    if any(result.status == "failed" for result in results):
        sys.exit(1)


def get_files(names: tuple[str, ...], fetch: bool, quiet: bool) -> None:
    """Fetch published files that are missing, where the user wants that.

    Raises:
        MissingWeightsError: names all that are not here otherwise.
    """
    from solverbench.cli_weights import fetch_all
    from solverbench.weights import item_of, present, require

    if fetch:
        missing = [name for name in names if not present(name)]
        by_hand = {name: item_of(name).manual is not None for name in missing}
        fetch_all(sorted(missing, key=lambda name: by_hand[name]), quiet)
    require(*names)


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def show_plan(recipe: Any, root: Path, jobs: int, as_json: bool) -> None:
    """Print what a run would do and take.

    Raises:
        SolverBenchError: after that, what the run would end with at once: exit code 3 where
            published files are missing.
    """
    from solverbench.commands import dry_run, specs_of

    lines, fault = dry_run(recipe, root, jobs)
    specs = [spec.model_dump(mode="json") for spec in specs_of(recipe)] if as_json else []
    click.echo(json.dumps(specs, indent=1) if as_json else "\n".join(lines))
    if fault is not None:
        raise fault


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
@click.option("--png", type=click.Path(path_type=Path), help="Folder of a PNG for each seed too.")
@FETCH
def sample(
    source: str,
    nfe: int | None,
    seeds: tuple[int, ...],
    out: Path,
    png: Path | None,
    fetch: bool,
    **options: Any,
) -> None:
    """Write a grid of samples; SOURCE is a solver's name or a tableau file.

    Then `solverbench evaluate FOLDER --reference ...` measures the folder of --png.
    """
    from solverbench.benchmark.spec import Named
    from solverbench.commands import sample_to
    from solverbench.inventory import files_of

    named = Named(name=options["backbone"], options=options_of(options["others"]))
    get_files(files_of(named), fetch, quiet=False)
    tableau = sample_to(out, source, named, nfe, options_of(options["pairs"]), seeds, png)
    places = f"{out}; each as PNG in {png}" if png else str(out)
    click.echo(f"{len(seeds)} samples of {tableau.meta['title']}, {tableau.nfe} NFE, in {places}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format", "fmt", default="console", show_default=True, help="console, md, csv, latex."
)
@click.option("--metric", "metrics", multiple=True, callback=words, help="Which, in this order.")
def table(folder: Path, fmt: str, metrics: tuple[str, ...]) -> None:
    """Print the tables of a folder of records."""
    from rich.console import Console

    from solverbench.benchmark.store import StoredInfluences, read_records
    from solverbench.leaderboards.render import console, render

    results, influences = read_records(folder), StoredInfluences(folder)
    if fmt == "console":
        Console(width=_width()).print(console(results, metrics or None, influences))
    else:
        click.echo(render(results, fmt, metrics or None, influences), nl=False)


@main.command()
@click.argument("name")
@click.option("--backbone-option", "others", multiple=True, help="Of a backbone: key=value.")
def check(name: str, others: tuple[str, ...]) -> None:
    """Check that a solver, backbone or metric plugin keeps its contract (on the CPU)."""
    from solverbench.inventory import check_plugin

    failed = 0
    for done in check_plugin(name, options_of(others)):
        failed += not done.passed
        click.echo(f"{'ok  ' if done.passed else 'FAIL'} {done.title}: {done.detail}")
    if failed:
        click.echo(f"{name}: {failed} checks failed", err=True)
        sys.exit(1)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def show(file: Path, as_json: bool) -> None:
    """Show what a file is: the times and coefficients of a tableau, or facts about weights.

    FILE is a tableau, a published pickle or checkpoint, a safetensors file, or a folder of
    diffusers. Of its tensors only the headers are read: no network is built, nothing in the file
    is run, and its own checksum is not checked.
    """
    from rich.console import Console

    from solverbench.inspecting import form_of, weights_facts
    from solverbench.inventory import facts_table, tableau_facts, tableau_tables

    weights_file = file.exists() and not form_of(file).startswith("solverbench-tableau")
    if as_json:
        facts = weights_facts(file) if weights_file else tableau_facts(file)
        click.echo(json.dumps(facts, indent=1))
        return
    shown = facts_table(weights_facts(file)) if weights_file else tableau_tables(file)
    Console(width=_width()).print(shown)


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
