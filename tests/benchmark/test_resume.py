import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from solverbench import tensorfile
from solverbench.benchmark.run import Run
from solverbench.benchmark.spec import FitSpec, Named, RunSpec
from solverbench.benchmark.training import FORMAT
from solverbench.errors import SolverBenchError
from tests.benchmark.cells import cell, worker

LONG = FitSpec(
    iterations=30, batch=8, train_size=16, validation_size=8, validate_every=10, ema_decay=0.9
)
LEARNED = cell("gs", nfe=3, fit=LONG, metrics=("fd", "rmse-teacher"))
SLOW = cell("dpmpp-2m", nfe=25, num_images=60, batch=2)  # 6 blocks of 10 images


def killed_when(spec: RunSpec, root: Path, ready: Callable[[], bool]) -> None:
    """Start a worker on a cell and kill it as soon as ``ready``."""
    deadline = time.monotonic() + 60
    with worker(spec, root) as process:
        while not ready():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -9


@pytest.mark.parametrize(
    ("solver", "options", "facts"),
    [
        ("gs", {}, {}),
        ("gs", {}, {"distance": "feature", "target_cache": 50_000}),  # half of the rows
        ("gs", {}, {"micro_batch": 3, "memory": 2}),
        ("gas", {"disc_lr": 1e-3, "warm_start": 0.2, "disc_warmup": 0.2}, {}),
        ("gas", {"disc_lr": 1e-3}, {"memory": "recompute"}),
        ("ld3-unipc", {"radius": 1.0}, {}),
        ("s4s-alt", {"radius": 1.0, "phase": 3}, {}),
    ],
)
def test_a_fit_killed_in_the_middle_goes_on_and_ends_with_the_same_bits(
    solver: str, options: dict[str, Any], facts: dict[str, Any], tmp_path: Path
) -> None:
    """State of a rule too: the discriminator, the noise that LD3 has moved, phases."""
    named = {"solver": Named(name=solver, options=options), "fit": LONG.model_copy(update=facts)}
    spec = LEARNED.model_copy(update=named)
    run, calm = Run(spec, tmp_path / "killed"), Run(spec, tmp_path / "calm")
    checkpoint = run.work / "fit.safetensors"

    def iteration() -> int:
        return int(tensorfile.read(checkpoint, FORMAT)[1]["iteration"])

    killed_when(spec, run.root, lambda: checkpoint.exists() and iteration() >= 12)
    reached = iteration()
    assert reached < LONG.iterations
    assert not run.path.exists()
    told: list[tuple[str, int]] = []
    again = Run(spec, run.root, lambda stage, done, total: told.append((stage, done))).execute()
    assert min(done for stage, done in told if stage == "fit") == reached + 1
    expected = calm.execute()
    assert again.metrics == expected.metrics
    assert again.conventions == expected.conventions
    curves = [
        [json.loads(row) for row in r.path.with_suffix(".fit.jsonl").read_text().splitlines()]
        for r in (run, calm)
    ]
    assert curves[0] == curves[1]
    assert again.cost is not None
    assert again.cost.fit_iterations == LONG.iterations


def test_sampling_killed_in_the_middle_goes_on_and_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    run, calm = Run(SLOW, tmp_path / "killed"), Run(SLOW, tmp_path / "calm")
    blocks = run.work / "samples"

    def made() -> list[Path]:
        return sorted(blocks.glob("*.safetensors"))

    killed_when(SLOW, run.root, lambda: len(made()) >= 2)
    kept = {path: path.stat().st_mtime_ns for path in made()}
    assert 2 <= len(kept) < 6
    assert not run.path.exists()
    seen: dict[Path, int] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage == "measure":  # before scratch is cleared
            seen.update({path: path.stat().st_mtime_ns for path in made()})

    again = Run(SLOW, run.root, report).execute()
    assert len(seen) == 6
    assert {path: seen[path] for path in kept} == kept
    assert again.metrics == calm.execute().metrics


def test_a_worker_ends_when_its_launcher_closes_the_line(tmp_path: Path) -> None:
    with worker(SLOW, tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["stage"] == "sample"
        process.stdin.close()
        assert process.wait(timeout=5) == 3
    assert not Run(SLOW, tmp_path).path.exists()


def test_a_damaged_checkpoint_is_a_failure_that_names_it_and_never_a_silent_restart(
    tmp_path: Path,
) -> None:
    short = LONG.model_copy(update={"iterations": 2})
    run = Run(LEARNED.model_copy(update={"fit": short}), tmp_path)
    checkpoint = run.work / "fit.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"torn")
    result = run.execute()
    assert result.status == "failed"
    assert str(checkpoint) in result.reason
    checkpoint.unlink()
    assert run.execute().status == "ok"
    with pytest.raises(SolverBenchError, match="is missing"):
        tensorfile.read(checkpoint, FORMAT)
