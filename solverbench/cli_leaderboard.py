"""Commands of the leaderboard: build and check its pages, pack and validate submissions."""

import sys
from pathlib import Path

import click

from solverbench.cli_parts import Group

ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of records, remarks and pages [solverbench/leaderboards].",
)


@click.group(cls=Group)
def leaderboard() -> None:
    """Pages made of the committed records."""


@leaderboard.command()
@ROOT
def build(root: Path | None) -> None:
    """Write every page anew from the records; pages that stay the same are not touched."""
    from solverbench.files import write_text
    from solverbench.leaderboards import boards
    from solverbench.reporting import studies

    root = _checked(root or boards.ROOT)
    stop(boards.problems(root), f"{root}: nothing was written")
    made, changed = boards.pages(root, studies(root)), 0
    for name, text in made.items():
        path = root / "pages" / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            click.echo(f"wrote pages/{name}")
            changed += 1
    for name in boards.stray(root, made):
        (root / "pages" / name).unlink()
        click.echo(f"deleted pages/{name}: no records are of it")
        changed += 1
    click.echo(f"{len(made)} pages, {changed} changed")


@leaderboard.command()
@ROOT
def check(root: Path | None) -> None:
    """Check records and pages: exit code 1 and a line for each problem."""
    from solverbench.leaderboards import boards
    from solverbench.reporting import studies

    root = _checked(root or boards.ROOT)
    found = boards.problems(root)
    found = found or boards.differences(root, studies(root))
    stop(found, f"{root}: the leaderboard is not in order")
    click.echo("every record is valid, and every page is what its records give")


def _checked(root: Path) -> Path:
    """The folder, if it is one of a leaderboard."""
    from solverbench.errors import SolverBenchError

    if not (root / "records").is_dir():
        raise SolverBenchError(
            f"{root} has no folder records; --root takes the folder of records, remarks and pages"
        )
    return root


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Of the submission: letters, digits and '-_.'.")
@click.option("--contact", default="", help="A person or an address, for readers.")
@click.option("--url", default="", help="https:// address of a paper or project.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("submission"),
    show_default=True,
    help="Folder to write records/community/NAME in.",
)
def submit(folder: Path, name: str, contact: str, url: str, out: Path) -> None:
    """Pack the records and solvers of a run FOLDER for a pull request.

    Cells that failed, or that the leaderboard has already, are left out. Nothing is sent.
    """
    from solverbench.errors import SolverBenchError
    from solverbench.files import write_bytes
    from solverbench.leaderboards import boards
    from solverbench.leaderboards.committed import COMMUNITY, read_all
    from solverbench.leaderboards.submissions import MANIFEST, pack

    known, _ = read_all(boards.ROOT / "records")
    files, left = pack(folder, name, contact, url, known)
    target = out / "records" / COMMUNITY / name
    if target.exists():
        raise SolverBenchError(f"{target} exists; delete it, or choose another --name or --out")
    for path in sorted(files, key=lambda path: path == MANIFEST):  # the manifest last
        write_bytes(target / path, files[path])
    for line in left:
        click.echo(line)
    size = sum(map(len, files.values()))
    click.echo(f"{target}: {len(files)} files, {size:,} bytes; next: solverbench validate {target}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--images", type=click.IntRange(2), default=100, show_default=True, help="To sample anew."
)
def validate(folder: Path, images: int) -> None:
    """Check a submission FOLDER: files, hashes, duplicates, and its solvers, which are re-run.

    Exit code 1 and a line for each problem. A tableau is numbers; nothing else is run.
    """
    from solverbench.leaderboards import boards
    from solverbench.leaderboards.committed import read_all
    from solverbench.leaderboards.submissions import duplicates, examine, folder_of
    from solverbench.validating import rerun

    place = folder_of(folder)
    found, faults = examine(place)
    known, _ = read_all(boards.ROOT / "records")
    stop([*faults, *duplicates(found, known)], f"{place} cannot be taken")
    failed = []
    for done in rerun(found, images):
        click.echo(f"{'ok  ' if done.passed else 'FAIL'} {done.about}: {done.text}")
        failed += [] if done.passed else [done.text]
    if failed:
        click.echo(f"{place} cannot be taken: {len(failed)} of {len(found)} did not pass", err=True)
        sys.exit(1)
    click.echo(f"{place}: {len(found)} records stand; RMSE-T and calls were re-run, FD was not")


def stop(lines: list[str], verdict: str) -> None:
    """Print problems and exit with code 1, if there are any."""
    if lines:
        for line in lines:
            click.echo(" ".join(line.split()))
        click.echo(f"{verdict}: {len(lines)} problem{'s' if len(lines) > 1 else ''}", err=True)
        sys.exit(1)
