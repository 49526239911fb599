"""Commands for published files: what there is, fetch, verify, convert. Slow imports stay inside."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from solverbench import weights as published
from solverbench.cli_parts import QUIET, Group
from solverbench.errors import MissingWeightsError
from solverbench.transfer import Listener

NAMES = click.argument("names", nargs=-1, required=True)


@click.group("weights", cls=Group)
def weights() -> None:
    """List, fetch, verify and convert the published files that the paper's models need.

    They are kept in a folder of the user; SOLVERBENCH_WEIGHTS names another one. With
    SOLVERBENCH_OFFLINE=1 no connection is opened.
    """


@weights.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def list_(as_json: bool) -> None:
    """List all files: kind, size, licence, and whether they are here."""
    rows = [
        item.model_dump(mode="json", exclude_none=True)
        | {"path": str(published.path(item.name)), "here": published.present(item.name)}
        for item in published.catalogue().values()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for item, row in zip(published.catalogue().values(), rows, strict=True):
        here = "here" if row["here"] else "missing"
        click.echo(f"{item.name:<34} {item.kind:<13} {size(item):>9} {here:<8} {item.licence}")
    click.echo(f"in {published.folder()}")


@weights.command()
@NAMES
@click.option("--dry-run", is_flag=True, help="Say what would be fetched and stop.")
@click.option("--force", is_flag=True, help="Fetch what is here again.")
@QUIET
def fetch(names: tuple[str, ...], dry_run: bool, force: bool, quiet: bool) -> None:
    """Fetch files by name; continues what was interrupted."""
    items = [published.item_of(name) for name in dict.fromkeys(names)]
    if dry_run:
        for item in items:
            here = published.present(item.name) and not force
            way = f"by hand: {item.manual}" if item.manual else f"{size(item)} from {item.origin}"
            what = "here" if here else way
            click.echo(f"{item.name}: {what} -> {published.path(item.name)}")
        return
    fetch_all((item.name for item in items), quiet, force)


@weights.command()
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def verify(names: tuple[str, ...], as_json: bool) -> None:
    """Compare files with their checksums; all that are here by default.

    Exit code 1 where one is damaged, 3 where a named one is missing.
    """
    chosen = names or tuple(n for n in published.catalogue() if published.present(n))
    found = [published.verify(name) for name in dict.fromkeys(chosen)]
    if as_json:
        click.echo(json.dumps([verdict._asdict() for verdict in found], indent=1))
    elif not found:
        click.echo(f"no published file is in {published.folder()}")
    else:
        for verdict in found:
            click.echo(f"{verdict.state:<9} {verdict.name}: {verdict.detail}")
    damaged = [verdict.name for verdict in found if verdict.state == "damaged"]
    if damaged:
        again = f"solverbench weights fetch --force {' '.join(damaged)}"
        click.echo(f"damaged: {', '.join(damaged)}. Get it again with: {again}", err=True)
        sys.exit(1)
    if missing := [verdict.name for verdict in found if verdict.state == "missing"]:
        raise MissingWeightsError(missing)


@weights.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="[FILE with .safetensors]")
@click.option("--config", type=click.Path(path_type=Path), help="YAML of an unpublished LDM.")
def convert(file: Path, out: Path | None, config: Path | None) -> None:
    """Turn an EDM pickle, R3GAN pickle or LDM checkpoint into safetensors and a model card."""
    from solverbench.converting import convert as convert_file

    made, card = convert_file(file, out, config)
    click.echo(f"{made}, and {card.name} about it")


@weights.command("path")
@click.argument("name")
def path_(name: str) -> None:
    """Print where a file belongs; exit code 3 where it is missing."""
    click.echo(published.path(name))
    published.require(name)


def size(item: published.Item) -> str:
    """Bytes in GB or MB; ``~`` where upstream states a round number, ``?`` where it states none."""
    known = item.size or item.roughly
    if known is None:
        return "?"
    shown = f"{known / 1e9:.2f} GB" if known >= 1e9 else f"{known / 1e6:.0f} MB"
    return shown if item.size else f"~{shown}"


def fetch_all(names: Iterable[str], quiet: bool = False, force: bool = False) -> None:
    """Fetch files one after another, with a bar each.

    Raises:
        SolverBenchError: for the first one that cannot be fetched.
    """
    for name in names:
        with _bar(name, quiet) as listen:
            place = published.fetch(name, listen, force=force)
        click.echo(f"{name}: {place}", err=True)


@contextmanager
def _bar(name: str, quiet: bool) -> Iterator[Listener]:
    """A bar on standard error; nothing where there is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True, quiet=quiet)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    words = TextColumn("{task.description:<34}")
    off = quiet or not console.is_terminal
    with Progress(words, *columns, console=console, disable=off, transient=True) as bars:
        task = bars.add_task(name, total=None)
        yield lambda here, total: bars.update(task, completed=here, total=total)
