"""Progress of many jobs on the terminal, on standard error."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from solverbench.benchmark.launch import Event, Job


class Bars:
    """One bar for the whole, one for each job that runs; plain lines where there is no terminal.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.live = self.console.is_terminal and not quiet
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<34}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.live,
            transient=True,
        )
        self.total = self.progress.add_task("all", total=None)
        self.bars: dict[Job, TaskID] = {}
        self.shares: dict[Job, float] = {}

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        job = event.job
        if event.stage == "start":
            self.bars[job] = self.progress.add_task(job.title, total=1.0)
        elif event.stage in ("done", "failed"):
            self._ended(event)
        elif event.stage != "queued":
            words = f"{job.title}: {event.stage}"
            self.progress.update(self.bars[job], completed=event.share, description=words)
        self.shares[job] = event.share
        done = sum(j.cost * share for j, share in self.shares.items())
        self.progress.update(self.total, completed=done, total=sum(j.cost for j in self.shares))

    def _ended(self, event: Event) -> None:
        bar = self.bars.pop(event.job)
        seconds = self.progress.tasks[self.progress.task_ids.index(bar)].elapsed or 0.0
        self.progress.remove_task(bar)
        place = f"[{sum(s >= 1.0 for s in self.shares.values()) + 1}/{len(self.shares)}]"
        words = f"{place} {event.job.title}  {seconds:.0f} s"
        if event.reason:
            words += f"  FAILED: {event.reason}"
        self.console.print(words, highlight=False, markup=False)
