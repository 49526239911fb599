"""Small cells on the digits for the tests of the harness, and a worker to kill."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from solverbench.benchmark.spec import EvaluationSpec, FitSpec, Named, RunSpec, TeacherSpec

TEACHER = TeacherSpec(solver=Named(name="dpmpp-2m"), nfe=6)
FIT = FitSpec(iterations=6, batch=8, train_size=16, validation_size=8, validate_every=3)


def cell(
    solver: str = "ddim",
    nfe: int = 4,
    fit: FitSpec | None = None,
    metrics: tuple[str, ...] = ("fd",),
    **changes: Any,
) -> RunSpec:
    """A cell of 40 images."""
    shared = {"num_images": 40, "batch": 10, "metrics": metrics}
    options = changes.pop("options", {})
    return RunSpec(
        backbone=Named(name="digits"),
        solver=Named(name=solver, options=options),
        nfe=nfe,
        teacher=TEACHER,
        evaluation=EvaluationSpec(**(shared | changes)),
        fit=fit,
    )


@contextmanager
def worker(spec: RunSpec, root: Path, kind: str = "cell") -> Iterator["subprocess.Popen[str]"]:
    """A worker at its job; it is killed at the end of the block if it still runs."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "SOLVERBENCH_CHECKPOINT_SECONDS": "0"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "solverbench.benchmark.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    job = {"kind": kind, "root": str(root), "threads": 1, "jobs": 1}
    job |= {"spec": spec.model_dump(mode="json")}
    try:
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
