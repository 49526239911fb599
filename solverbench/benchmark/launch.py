"""Many cells: shared teacher sets first, then one process a cell, longest first."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from solverbench.benchmark.outcome import failed
from solverbench.benchmark.results import Result
from solverbench.benchmark.run import Run, fit_seeds, loaded, needs_teacher
from solverbench.benchmark.spec import RunSpec
from solverbench.benchmark.store import check_writable, read_record, write_record
from solverbench.errors import SolverBenchError

THREADS = 1  # of a worker: two contended OpenMP threads can be 10 times slower than one
BACKWARD_COST = 1.0  # of a way back, in ways out: weights are frozen (digits 1.03, cifar16 1.06)


@dataclass(frozen=True, eq=False)
class Job:
    """What one process does.

    Attributes:
        kind: ``cell``, or the part of the teacher to make: ``train`` or ``evaluation``.
        spec: of the cell, or of a cell that needs the part.
        cost: network rows, roughly.
        title: for people.
    """

    kind: str
    spec: RunSpec
    cost: float
    title: str


@dataclass(frozen=True)
class Event:
    """Progress of a job.

    Attributes:
        job: which.
        stage: what it does now; ``queued``, ``start``, ``done`` and ``failed`` are its marks.
        share: of the job that is done, 0 to 1.
        reason: why it failed.
    """

    job: Job
    stage: str
    share: float
    reason: str = ""


Listener = Callable[[Event], None]


def cost_of(spec: RunSpec) -> float:
    """Network rows of a cell, with gradients counted as dearer."""
    sampling = spec.evaluation.num_images * spec.nfe
    if spec.fit is None:
        return float(sampling)
    forward = spec.fit.iterations * spec.fit.batch * spec.nfe
    return sampling + (1 + BACKWARD_COST) * forward


def title_of(spec: RunSpec) -> str:
    """A cell in a few words."""
    listed = ", ".join(f"{key}={value}" for key, value in spec.solver.options.items())
    options = f" ({listed})" if listed else ""
    schedule = f" [{spec.schedule.name}]" if spec.schedule else ""
    seed = f", seed {spec.seed}" if spec.seed else ""
    return f"{spec.solver.name}{options}{schedule} @ {spec.nfe}{seed}"


def plan(specs: Sequence[RunSpec], root: Path) -> tuple[list[Job], list[Job]]:
    """Jobs for the cells that are not finished: the shared parts, then the cells.

    Raises:
        SolverBenchError: for the first cell that cannot work.
    """
    open_specs = []
    for spec in specs:
        cell = Run(spec, root)
        if cell.done() is None:
            cell.check()
            open_specs.append(spec)
    loaded.cache_clear()
    parts: dict[tuple[object, ...], Job] = {}
    for spec in open_specs:
        parts_of = (spec.backbone, spec.network, spec.teacher)
        teacher = tuple(part.model_dump_json() for part in parts_of)
        if spec.fit is not None and spec.fit.pairs is None:
            seeds = fit_seeds(spec)
            size = spec.teacher.nfe * sum(len(s) for s in seeds)
            parts.setdefault(
                ("train", *teacher, seeds), Job("train", spec, size, "teacher, training set")
            )
        if not spec.is_teacher and needs_teacher(spec):
            size = spec.teacher.nfe * spec.evaluation.num_images
            key = ("evaluation", *teacher, spec.evaluation.model_dump_json())
            parts.setdefault(key, Job("evaluation", spec, size, "teacher, evaluation set"))
    cells = [Job("cell", s, cost_of(s), title_of(s)) for s in open_specs]
    return _longest_first(parts.values()), _longest_first(cells)


def _longest_first(jobs: object) -> list[Job]:
    return sorted(jobs, key=lambda job: -job.cost)  # type: ignore[call-overload,no-any-return]


def run_all(
    specs: Sequence[RunSpec],
    root: Path,
    num_workers: int,
    listen: Listener = lambda event: None,
) -> list[Result]:
    """Run cells in processes and return all their records, in the order given.

    A process that dies costs its cell only: the cell's record says so.

    Args:
        specs: the cells; finished ones are read, not run.
        root: folder of records.
        num_workers: processes at a time, one thread each; results do not depend on it.
        listen: told of progress, from the calling thread.

    Raises:
        SolverBenchError: for a cell that cannot work, before anything starts, or a teacher set
            that could not be made.
    """
    check_writable(root)
    parts, cells = plan(specs, root)
    for job in parts + cells:
        listen(Event(job, "queued", 0.0))
    broken = _run_jobs(parts, root, num_workers, listen)
    if broken:
        raise SolverBenchError("; ".join(f"{job.title}: {why}" for job, why in broken))
    for job in cells:  # an old failure must not stand for a worker that dies without a word
        Run(job.spec, root).path.unlink(missing_ok=True)
    for job, why in _run_jobs(cells, root, num_workers, listen):
        if not Run(job.spec, root).path.exists():
            write_record(root, failed(job.spec, why))
    return [read_record(Run(spec, root).path) for spec in specs]


def _run_jobs(
    jobs: Sequence[Job], root: Path, num_workers: int, listen: Listener
) -> list[tuple[Job, str]]:
    """Run jobs, a few at a time; those that failed, with the reason."""
    crew = Crew(root, num_workers)
    waiting, running, broken = list(jobs), 0, []
    try:
        while waiting or running:
            while waiting and running < num_workers:
                crew.start(waiting.pop(0))
                running += 1
            event = crew.events.get()
            if event.stage in ("done", "failed"):
                running -= 1
            if event.stage == "failed":
                broken.append((event.job, event.reason))
            listen(event)
    finally:
        crew.end()
    return broken


class Crew:
    """Worker processes, each attended by a thread that turns what it says into events.

    Args:
        root: folder of records.
        num_workers: how many work at a time; for the records.

    Attributes:
        events: what the workers said, in order.
    """

    def __init__(self, root: Path, num_workers: int) -> None:
        self.root, self.num_workers = root, num_workers
        self.events: queue.Queue[Event] = queue.Queue()
        self.alive: set[subprocess.Popen[str]] = set()
        self.attendants: list[threading.Thread] = []

    def start(self, job: Job) -> None:
        """Give a job to a new process."""
        attendant = threading.Thread(target=self._attend, args=(job,), daemon=True)
        self.attendants.append(attendant)
        attendant.start()

    def end(self) -> None:
        """Kill whatever still runs, and wait for it."""
        for process in list(self.alive):
            process.kill()
        for attendant in self.attendants:
            attendant.join(timeout=10)

    def _attend(self, job: Job) -> None:
        """Follow a worker to its end; whatever happens, one event tells of it."""
        self.events.put(Event(job, "start", 0.0))
        try:
            code, finished, last = self._work(job)
            reason = _recorded(job, self.root) if code == 0 and finished else _why(code, last)
        except (OSError, SolverBenchError) as error:  # no process, no pipe, or an unreadable record
            finished, code, reason = False, 1, " ".join(str(error).split())
        stage = "done" if code == 0 and finished else "failed"
        self.events.put(Event(job, stage, 1.0, reason))

    def _work(self, job: Job) -> tuple[int, bool, list[str]]:
        """Run a worker: its exit code, whether it said that it was done, its last words."""
        command = [sys.executable, "-P", "-m", "solverbench.benchmark.worker"]
        env = os.environ | {"OMP_NUM_THREADS": str(THREADS), "PYTHONUNBUFFERED": "1"}
        order = {
            "kind": job.kind,
            "root": str(self.root),
            "threads": THREADS,
            "jobs": self.num_workers,
        }
        order |= {"spec": job.spec.model_dump(mode="json")}
        pipe = subprocess.PIPE
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=env
            ) as process,
        ):
            self.alive.add(process)
            finished = _converse(process, order, lambda *said: self._pass_on(job, *said))
            code = process.wait()
            self.alive.discard(process)
            errors.seek(0)
            return code, finished, [line.strip() for line in errors if line.strip()][-1:]

    def _pass_on(self, job: Job, stage: str, done: float) -> None:
        self.events.put(Event(job, stage, _share(job, stage, done)))


def _converse(
    process: "subprocess.Popen[str]",
    order: dict[str, object],
    report: Callable[[str, float], None],
) -> bool:
    """Tell a worker what to do and report its progress; whether it said that it was done."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once; its exit code says so
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
    finished = False
    for line in process.stdout:
        try:
            said = json.loads(line)
        except ValueError:
            continue  # a plugin printed something
        if isinstance(said, dict) and "stage" in said:
            finished = said["stage"] == "done"
            if not finished:
                report(said["stage"], said["done"] / max(1, said["total"]))
    return finished


def _share(job: Job, stage: str, done: float) -> float:
    """Share of a whole job, from that of its stage."""
    if job.kind != "cell":
        return done
    fit = 1 - job.spec.evaluation.num_images * job.spec.nfe / job.cost
    return {"fit": fit * done, "sample": fit + (1 - fit) * done, "measure": 0.99}.get(stage, 0.0)


def _recorded(job: Job, root: Path) -> str:
    """The reason in the record of a cell; empty where it went well."""
    return read_record(Run(job.spec, root).path).reason if job.kind == "cell" else ""


def _why(code: int, last: Sequence[str]) -> str:
    """Why a worker failed: its signal, else the last line it wrote to standard error."""
    if code < 0:
        return f"the worker was killed by signal {-code}"
    return "".join(last) or f"the worker ended with exit code {code}"
