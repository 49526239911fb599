"""The command that says where the time and the bytes of one step go."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from solverbench.cli_parts import BACKBONE, options_of

if TYPE_CHECKING:
    from rich.table import Table

    from solverbench.profiling import Profile

BATCHES = {False: 64, True: 24}  # of sampling and training, where none is given


class Memory(click.ParamType[str | int]):
    """``store``, ``recompute`` or a number of calls."""

    name = "store|recompute|K"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int:
        """The setting, as a budget of training has it."""
        if value in ("store", "recompute"):
            return str(value)
        if not (value.isdecimal() and int(value)):
            self.fail(f"{value!r} is none of store, recompute, or a number from 1", param, ctx)
        return int(value)


@click.command("profile")
@click.argument("solver")
@BACKBONE
@click.option("--nfe", type=click.IntRange(1, 4096), required=True)
@click.option("--train", is_flag=True, help="One training iteration, not one sampling.")
@click.option("--batch", type=click.IntRange(1, 10_000), help="Samples a step [64; --train: 24].")
@click.option("--memory", type=Memory(), help="Of --train: store [default], recompute, or K calls.")
@click.option("--distance", help="Of --train [l2].")
@click.option("--steps", type=click.IntRange(1, 1000), default=5, help="Shows the median one [5].")
@click.option("--option", "pairs", multiple=True, help="Of the solver: key=value.")
@click.option("--backbone-option", "others", multiple=True, help="Of the backbone: key=value.")
@click.option("--trace", type=click.Path(path_type=Path), help="Chrome trace to write [none].")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def profile(trace: Path | None, as_json: bool, **choice: Any) -> None:
    """Say where the time and the bytes of one step of SOLVER go.

    A step samples a batch, or with --train makes one iteration of the solver's training.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    from rich.console import Console

    from solverbench.benchmark.store import check_writable
    from solverbench.errors import SolverBenchError
    from solverbench.files import write_text
    from solverbench.profiling import measured, prepared

    if trace is not None and trace.is_dir():
        raise SolverBenchError(f"{trace} is a folder; --trace names a file")
    job = _job(choice)
    task = prepared(job)
    if trace is not None:
        check_writable(trace.parent)
    found = measured(job, task)
    if trace is not None:
        write_text(trace, json.dumps(found.trace))
    if as_json:
        click.echo(json.dumps(found.record(), indent=1))
        return
    click.echo(found.about)
    Console(width=None if sys.stdout.isatty() else 100).print(_table(found))
    click.echo("\n".join(_lines(found) + ([f"trace: {trace}"] if trace else [])))


def _job(choice: dict[str, Any]) -> Any:
    """The command line as a job; refuses options of a training where there is none."""
    from solverbench.benchmark.spec import Named
    from solverbench.errors import SolverBenchError
    from solverbench.profiling import Job

    train = choice["train"]
    for name in ("memory", "distance"):
        if choice[name] is not None and not train:
            raise SolverBenchError(f"--{name} is of a training; add --train, or leave it away")
    return Job(
        solver=Named(name=choice["solver"], options=options_of(choice["pairs"])),
        backbone=Named(name=choice["backbone"], options=options_of(choice["others"])),
        nfe=choice["nfe"],
        train=train,
        batch=choice["batch"] or BATCHES[train],
        memory=choice["memory"] or "store",
        distance=choice["distance"] or "l2",
        steps=choice["steps"],
    )


def _table(found: "Profile") -> "Table":
    """A row a stage, then the step."""
    from rich.table import Table

    table = Table("stage", box=None, pad_edge=False)
    for column in ("ms", "share", "times", "kept MB", "peak MB"):
        table.add_column(column, justify="right")
    for row in found.stages:
        figures = _figures(row.seconds, found.seconds, row.kept_bytes, row.peak_bytes)
        times = str(row.entered) if row.name != "other" else ""
        table.add_row(row.name, *figures[:2], times, *figures[2:])
    whole = _figures(found.seconds, found.seconds, found.kept_bytes, found.peak_bytes)
    table.add_row("step", *whole[:2], "", *whole[2:], style="bold")
    return table


def _figures(seconds: float, whole: float, kept: int, peak: int) -> tuple[str, str, str, str]:
    """Milliseconds, share of the step, megabytes left behind (with sign) and at most."""
    left = f"{kept / 1e6:+.2f}" if abs(kept) >= 5e3 else "0.00"
    return f"{seconds * 1e3:.2f}", f"{seconds / whole:.1%}", left, f"{peak / 1e6:.2f}"


def _lines(found: "Profile") -> list[str]:
    """What stands below the table."""
    return [
        f"network: {found.calls} calls, {found.network_rows} rows a step",
        f"bare network: {found.bound_seconds * 1e3:.2f} ms ({found.bound})",
        f"step without profiler: {found.plain_seconds * 1e3:.2f} ms, {found.ratio:.3f} times the "
        f"bare network; the profiled one takes {found.slower:.2f} times as long",
        *found.notes,
    ]
