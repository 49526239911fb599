import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from solverbench import registry
from solverbench.benchmark import launch
from solverbench.benchmark.launch import Event, plan, run_all
from solverbench.benchmark.run import Run
from solverbench.benchmark.store import read_record
from solverbench.errors import SolverBenchError
from tests.benchmark.cells import FIT, TEACHER, cell

SUDDEN = '''
import os, pathlib, signal, sys

from solverbench.solvers.ddim import DDIM


class Sudden(DDIM):
    """Ends its process, or raises, as the file of its name says."""

    def __init__(self, setting, *, script: str):
        super().__init__(setting)
        self.script = pathlib.Path(script)

    def integrate(self, x, grid, network):
        how = self.script.read_text() if self.script.exists() else ""
        if not sys.argv[0].endswith("worker.py"):
            how = ""  # the launcher traces a solver too, to check it
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exit":
            os._exit(7)
        if how == "raise":
            raise RuntimeError("the first line\\nand the second")
        return super().integrate(x, grid, network)
'''


PAIRED = ("fd", "fd-teacher")


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A plugin ``sudden`` known here and to workers; the folder of its scripts."""
    folder = tmp_path / "plugin"
    facts = folder / "sudden-1.0.dist-info"
    facts.mkdir(parents=True)
    (folder / "sudden.py").write_text(SUDDEN)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: sudden\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[solverbench.solvers]\nsudden = sudden:Sudden\n")
    monkeypatch.syspath_prepend(str(folder))
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    registry._scan.cache_clear()
    yield folder
    registry._scan.cache_clear()
    sys.modules.pop("sudden", None)


def test_a_worker_that_dies_or_raises_costs_its_cell_only_and_is_tried_again(
    scripts: Path, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    names = ("raises", "dies", "leaves")
    broken = [
        cell("sudden", nfe=2 + i, options={"script": str(scripts / n)}) for i, n in enumerate(names)
    ]
    specs = [broken[0], cell("ddim"), *broken[1:]]
    for name, how in zip(names, ("raise", "kill", "exit"), strict=True):
        (scripts / name).write_text(how)
    raised, fine, died, left = run_all(specs, root, num_workers=2)
    assert [r.status for r in (raised, fine, died, left)] == ["failed", "ok", "failed", "failed"]
    assert raised.reason == "RuntimeError: the first line and the second"
    assert died.reason == "the worker was killed by signal 9"
    assert left.reason == "the worker ended with exit code 7"
    assert died.title == "DDIM"

    (scripts / "raises").write_text("kill")  # fails again, in another way
    (scripts / "dies").unlink()
    (scripts / "leaves").unlink()
    before = Run(specs[1], root).path.stat().st_mtime_ns
    raised, fine, died, left = run_all(specs, root, num_workers=1)
    assert [r.status for r in (raised, fine, died, left)] == ["failed", "ok", "ok", "ok"]
    assert raised.reason == "the worker was killed by signal 9"
    assert Run(specs[1], root).path.stat().st_mtime_ns == before
    assert read_record(Run(specs[0], root).path) == raised


def test_finished_cells_are_read_and_no_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = cell("ddim")
    first = Run(spec, tmp_path).execute()

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(launch.subprocess, "Popen", refuse)
    events: list[Event] = []
    assert run_all([spec, spec], tmp_path, 2, events.append) == [first, first]
    assert events == []


def test_a_plan_makes_each_shared_part_once_and_the_longest_job_first(tmp_path: Path) -> None:
    teacher = cell(TEACHER.solver.name, nfe=TEACHER.nfe)
    learned = [cell("gs", nfe=n, fit=FIT) for n in (3, 4)]
    parts, _ = plan([cell("ddim"), *learned, teacher], tmp_path)
    assert [job.kind for job in parts] == ["train"]  # no metric is against the teacher
    learned = [cell("gs", nfe=n, fit=FIT, metrics=PAIRED) for n in (3, 4)]
    teacher = cell(TEACHER.solver.name, nfe=TEACHER.nfe, metrics=PAIRED)
    parts, cells = plan([cell("ddim", metrics=PAIRED), *learned, teacher], tmp_path)
    assert sorted(job.kind for job in parts) == ["evaluation", "train"]
    assert [(j.spec.solver.name, j.spec.nfe) for j in cells] == [
        ("gs", 4),
        ("gs", 3),
        ("dpmpp-2m", 6),
        ("ddim", 4),
    ]


def test_a_cell_that_cannot_work_stops_everything_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(SolverBenchError, match="heun needs an odd nfe"):
        run_all([cell("ddim"), cell("heun")], tmp_path, 2)
    assert list(tmp_path.rglob("*")) == []


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(SolverBenchError, match=r"cannot write in .*runs"):
        run_all([cell("ddim")], tmp_path / "runs", 1)


def test_a_process_that_cannot_be_started_is_told_and_nothing_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = cell(TEACHER.solver.name, nfe=TEACHER.nfe)
    monkeypatch.setattr(launch.sys, "executable", "/no/such/python")
    (result,) = run_all([teacher], tmp_path, 1)
    assert result.status == "failed"
    assert "/no/such/python" in result.reason
    with pytest.raises(SolverBenchError, match=r"teacher, evaluation set: .*no/such/python"):
        run_all([cell("ddim", metrics=PAIRED)], tmp_path, 1)


LAUNCHER = """
import sys
from pathlib import Path
from solverbench.benchmark.launch import run_all
from solverbench.benchmark.spec import RunSpec
def listen(event):
    print(event.stage, flush=True)
if __name__ == "__main__":
    run_all([RunSpec.model_validate_json(sys.argv[1])], Path(sys.argv[2]), 1, listen)
"""


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and _state(int(entry.name))[1:] == (parent,):
            found.append(int(entry.name))
    return found


def runs(pid: int) -> bool:
    return _state(pid)[:1] not in ((), ("Z",))  # a zombie has ended; its new parent may be slow


def _state(pid: int) -> tuple[str, int] | tuple[()]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ()
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_end_when_the_launcher_is_killed(tmp_path: Path) -> None:
    spec = cell(
        "ddim", num_images=20_000, batch=10, metrics=PAIRED
    )  # far more than the test waits for
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, spec.model_dump_json(), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    workers: list[int] = []
    try:
        assert launcher.stdout is not None
        assert any(line.strip() == "teacher" for line in launcher.stdout)  # a worker samples
        workers = children(launcher.pid)
        assert len(workers) == 1
        assert runs(workers[0])
        launcher.kill()
        launcher.wait()
        deadline = time.monotonic() + 5
        while runs(workers[0]) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not runs(workers[0])
    finally:
        launcher.kill()
        launcher.wait()
        if launcher.stdout is not None:
            launcher.stdout.close()
        for pid in filter(runs, workers):
            os.kill(pid, signal.SIGKILL)
