"""Small cells of the embedded tables, and the command that makes their golden values anew.

    python -m tests.regression.cells      # ten minutes; writes golden.json beside this file

Do so only for a change that is meant to move numbers, and say in the commit which and why.
"""

import json
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from solverbench.benchmark.run import run
from solverbench.benchmark.spec import EvaluationSpec, FitSpec, Named, RunSpec, TeacherSpec
from solverbench.files import write_text

GOLDEN = Path(__file__).with_name("golden.json")
METRICS = ("fd", "fd-teacher", "fd-texture", "precision", "recall", "rmse-teacher")
TEACHER = TeacherSpec(
    solver=Named(name="unipc-3", options={"schedule": "logsnr", "variant": "bh1", "t_min": 1e-4}),
    nfe=20,
)
FIT = FitSpec(
    iterations=40,
    batch=8,
    lr=1e-3,  # larger ones tear training seeds apart
    lr_schedule="cosine",
    distance="feature",
    train_size=128,
    validation_size=32,
    validate_every=40,
    ema_decay=0.9,
)
ADVERSARY = {"pretrained": True, "warm_start": 0.25, "gamma": 0.01, "disc_lr": 5e-4}
FREE = {  # no training: rounding alone may move a value
    "digits": (("dpmpp-3m", 3), ("unipc-3", 4), ("ipndm-3", 4), ("deis-3", 5), ("heun", 5)),
    "cifar16": (("unipc-3", 4), ("ipndm-3", 6)),
}
IMAGES, BATCH = {"digits": 400, "cifar16": 120}, 40
# On digits; training amplifies rounding. LD3 and S4S take or refuse moves of noise: in so short a
# fit their training seeds scatter more than a change would move them. tests/solvers holds these.
LEARNED: dict[str, dict[str, Any]] = {"gs": {}, "gas": ADVERSARY}
LEARNED_NFE, SEEDS = 3, range(5)
# Batch sizes, and torch 2.13 beside 2.14, moved FD of these cells by at most 2e-4 (an image of
# which one pixel rounds to the next of 256 steps moves it by 1e-5 to 1e-4) and RMSE-T by 1e-8.
# Other processors are given more. A coefficient of the last call off by a thousandth moves FD of
# UniPC by 6e-3 and RMSE-T by up to 9e-4.
ABSOLUTE = {"fd": 1e-3, "fd-teacher": 1e-3, "fd-texture": 1e-3, "rmse-teacher": 2e-6}
RELATIVE = 1e-5
SPREAD = 4  # standard deviations over training seeds


def free(backbone: str, solver: str, nfe: int) -> RunSpec:
    """A cell without training."""
    return RunSpec(
        backbone=Named(name=backbone),
        solver=Named(name=solver, options={}),
        nfe=nfe,
        teacher=TEACHER,
        evaluation=EvaluationSpec(num_images=IMAGES[backbone], batch=BATCH, metrics=METRICS),
    )


def learned(solver: str) -> RunSpec:
    """A cell with a short fit."""
    spec = free("digits", solver, LEARNED_NFE)
    named = Named(name=solver, options=LEARNED[solver])
    return spec.model_copy(update={"solver": named, "fit": FIT})


def cells() -> Iterator[tuple[str, RunSpec]]:
    """Every cell by its name in the golden file."""
    for backbone, rows in FREE.items():
        for solver, nfe in rows:
            yield f"{backbone} {solver} @ {nfe}", free(backbone, solver, nfe)
    for solver in LEARNED:
        yield f"digits {solver} @ {LEARNED_NFE}", learned(solver)


def measured(spec: RunSpec, root: Path) -> dict[str, float]:
    """Metrics of a cell; teacher sets are kept in ``root``."""
    result = run(spec, root)
    assert result.status == "ok", result.reason
    return dict(result.metrics)


def golden_of(spec: RunSpec, root: Path) -> dict[str, dict[str, float]]:
    """Value and tolerance of each metric."""
    seeds = SEEDS if spec.fit else (spec.seed,)
    found = [measured(spec.model_copy(update={"seed": seed}), root) for seed in seeds]
    num = spec.evaluation.num_images
    return {name: _golden(name, [one[name] for one in found], num) for name in METRICS}


def _golden(name: str, values: list[float], num_images: int) -> dict[str, float]:
    value = statistics.mean(values)
    if len(values) > 1:
        tolerance = SPREAD * statistics.stdev(values)
    else:
        tolerance = ABSOLUTE.get(name, 0.0) + RELATIVE * abs(value)
    if name in ("precision", "recall"):  # an image more or less on either side of a ball
        tolerance = max(tolerance, 2.5 / num_images)
    return {"value": value, "tolerance": float(f"{tolerance:.2g}")}


def main() -> None:
    """Measure all cells anew."""
    torch.set_num_threads(1)
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
    )
    about = {
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "device": f"{platform.machine()} CPU",
        "date": datetime.now(UTC).date().isoformat(),
        "redo": "python -m tests.regression.cells",
    }
    with tempfile.TemporaryDirectory() as folder:
        found = {name: golden_of(spec, Path(folder)) for name, spec in cells()}
    write_text(GOLDEN, json.dumps({"about": about, "cells": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
