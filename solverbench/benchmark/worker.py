"""One job in a process of its own: JSON in, progress as JSON lines out."""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from solverbench.benchmark.spec import RunSpec
from solverbench.errors import SolverBenchError

REPORT_SECONDS = 0.2


def main() -> None:
    """Read a job from standard input, do it, report to standard output.

    The job is {"kind": "cell" or a part of the teacher, "root", "spec", "threads", "jobs"}.
    Standard input stays open as long as the launcher lives; when it closes, this process ends.
    """
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    import torch

    from solverbench.benchmark.run import Run

    torch.set_num_threads(job["threads"])
    run = Run(RunSpec.model_validate(job["spec"]), Path(job["root"]), _reporter(), job["jobs"])
    try:
        run.execute() if job["kind"] == "cell" else run.prepare(job["kind"])
    except SolverBenchError as error:
        sys.exit(str(error))
    _say({"stage": "done", "done": 1, "total": 1})


def _end_with_launcher() -> None:
    sys.stdin.read()
    os._exit(3)


def _reporter() -> Any:
    said, last = "", 0.0

    def report(stage: str, done: int, total: int) -> None:
        nonlocal said, last
        now = time.monotonic()
        if stage != said or done == total or now - last > REPORT_SECONDS:
            said, last = stage, now
            _say({"stage": stage, "done": done, "total": total})

    return report


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
