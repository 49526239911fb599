"""Commands that import what the paper published: teacher sets and students."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from solverbench.cli_parts import QUIET, Group, options_of

if TYPE_CHECKING:
    from solverbench.benchmark.sampling import Progress

FILE = click.argument("file", type=click.Path(path_type=Path))
BACKBONE = click.option("--backbone", required=True, help="Plugin that the file belongs to.")
OPTION = click.option("--backbone-option", "others", multiple=True, help="Of it: key=value.")


@click.group("import", cls=Group)
def import_() -> None:
    """Import the paper's teacher sets and students; nothing in a file is run."""


@import_.command()
@FILE
@BACKBONE
@OPTION
@click.option("--out", type=click.Path(path_type=Path), help="Folder to make [teachers/BACKBONE].")
@click.option("--images", is_flag=True, help="Copy decoded images too; training needs none.")
@QUIET
def teacher(
    file: Path, backbone: str, others: tuple[str, ...], out: Path | None, images: bool, quiet: bool
) -> None:
    """Copy a teacher set into shards; train on them with --set fit.pairs=FOLDER."""
    from solverbench.benchmark.importing.teacher import import_teacher
    from solverbench.benchmark.load import load_backbone

    folder = out or Path("teachers") / backbone
    loaded = load_backbone(backbone, **options_of(others))
    with _bar(quiet) as progress:
        index = import_teacher(file, loaded, folder, images, progress)
    drawn = "our seed 0" if index.origin.cpu_noise else "a generator that is not ours (CUDA)"
    click.echo(
        f"{index.rows} rows, condition {index.condition}, in {len(index.shards)} shards in "
        f"{folder}; noise of row 0 is from {drawn}; use it with --set fit.pairs={folder}"
    )


@import_.command()
@FILE
@BACKBONE
@OPTION
@click.option("--solver", default="gs", show_default=True, help="gs, gas or s4s-pc-gas.")
@click.option("--nfe", type=click.IntRange(1), help="To be compared with the file's.")
@click.option("--t-min", type=click.FloatRange(0, min_open=True), help="[the backbone's]")
@click.option("--weights", type=click.Choice(["ema", "raw"]), default="ema", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Tableau file [NAME.safetensors].")
def student(
    file: Path, backbone: str, others: tuple[str, ...], out: Path | None, **choice: object
) -> None:
    """Turn a trained GS or GAS into a tableau; the last time is not in the file, see --t-min."""
    from solverbench.benchmark.importing.student import ORDER_CHECKS, Student, import_student
    from solverbench.benchmark.load import load_backbone

    path = out or Path(file.with_suffix(".safetensors").name)
    loaded = load_backbone(backbone, **options_of(others))
    tableau = import_student(file, loaded, path, Student(**choice))  # type: ignore[arg-type]
    found = tableau.meta["imported"]
    lacking = "" if found["order_checks"] == ORDER_CHECKS else ", for its model names no tensors"
    checked = f"{found['order_checks']} of {ORDER_CHECKS} checks of the order applied{lacking}"
    click.echo(
        f"{tableau.meta['title']}, {tableau.nfe} NFE, weights {found['weights']} of step "
        f"{found['step']}, ends at t = {tableau.meta['t_min']:g}, in {path}; {checked}"
    )


@contextmanager
def _bar(quiet: bool) -> Iterator["Progress"]:
    """A bar on standard error that is told of rows."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    screen = Console(stderr=True)
    with Bar(console=screen, disable=quiet or not screen.is_terminal) as bar:
        task = bar.add_task("rows", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
