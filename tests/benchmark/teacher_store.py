"""Memory and time of a fit's reading from a teacher set of any size, in a process of its own.

    python -m tests.benchmark.teacher_store FOLDER SHARDS [DISTINCT] [SIDE]

makes a set of shards of 16 MiB (noise and states of 3xSIDExSIDE numbers, 32 by default) in FOLDER,
DISTINCT of them on the disk and the others links to those. Where FOLDER is there, it is taken as it
is. Then a process trains and validates GS on random batches of it, reads it once in order as a
measurement does, and prints what that took as JSON.
"""

import json
import math
import sys
import time
from pathlib import Path

import torch

from solverbench.backbones.gaussian import Gaussian
from solverbench.benchmark.distances import L2
from solverbench.benchmark.importing.pairs import (
    Index,
    Origin,
    read_index,
    read_pairs,
    write_index,
    write_shard,
)
from solverbench.benchmark.load import load_solver
from solverbench.benchmark.meter import peak_memory
from solverbench.benchmark.sampling import Samples
from solverbench.benchmark.spec import FitSpec
from solverbench.benchmark.training import Fit, Lesson
from solverbench.solvers.base import LearnableSolver

SHARD = 1 << 24  # bytes
BATCH = 24
ITERATIONS = 50
STATUS = Path("/proc/self/status")


def shape_of(side: int) -> tuple[int, int, int]:
    return 3, side, side


def rows_of(side: int) -> int:
    """Of noise and states in a shard."""
    return SHARD // (2 * 4 * math.prod(shape_of(side)))


def make(folder: Path, num: int, distinct: int | None = None, side: int = 32) -> None:
    """A set of ``num`` shards; those beyond the first ``distinct`` are links."""
    sums, rows = list[str](), rows_of(side)
    rng = torch.Generator().manual_seed(0)
    for number in range(num):
        if distinct is None or number < distinct:
            noise = torch.randn(rows, *shape_of(side), generator=rng)
            sums.append(
                write_shard(folder, number * rows, {"noise": noise, "states": 0.5 * noise}, [])
            )
        else:
            first = folder / f"{number % distinct * rows:08d}.safetensors"
            (folder / f"{number * rows:08d}.safetensors").hardlink_to(first)
            sums.append(sums[number % distinct])
    origin = Origin(file="made", num_bytes=0, backbone="gaussian", cpu_noise=True)
    index = Index(
        rows=num * rows,
        rows_a_shard=rows,
        shards=tuple(sums),
        state_shape=shape_of(side),
        condition="none",
        images=False,
        origin=origin,
    )
    write_index(folder, index)


def pages() -> dict[str, int]:
    """Anonymous and file pages in memory, bytes."""
    rows = dict(row.split(":") for row in STATUS.read_text().splitlines())
    return {key: int(rows[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile")}


def fit_of(backbone: Gaussian, train: Samples, validation: Samples) -> Fit:
    """A fit on all rows."""
    spec = FitSpec(
        iterations=ITERATIONS,
        batch=BATCH,
        train_size=len(train.states),
        validation_size=len(validation.states),
        memory="recompute",
    )
    solver = load_solver("gs", backbone, 4)
    assert isinstance(solver, LearnableSolver)
    return Fit(solver, Lesson(spec, 0, backbone, L2(backbone), train, validation))


def measured(folder: Path) -> dict[str, float]:
    """Bytes above those before the set was opened, and seconds."""
    index, found, seconds = read_index(folder), dict[str, int](), dict[str, float]()
    backbone, last = Gaussian(shape=index.state_shape, num=1), index.rows - index.rows_a_shard

    def clock(name: str, start: float) -> None:
        seconds[name] = round(time.perf_counter() - start, 3)
        for key, value in pages().items():
            found[key] = max(found.get(key, 0), value - before[key])

    few = read_pairs(folder, backbone, range(2 * BATCH))
    warm = fit_of(backbone, few, few)
    warm.advance()
    warm.validate()
    with peak_memory(torch.device("cpu")) as peak:
        before, start = pages(), time.perf_counter()
        train = read_pairs(folder, backbone, range(last))
        validation = read_pairs(folder, backbone, range(last, index.rows))
        clock("opening", start)
        fit = fit_of(backbone, train, validation)
        for iteration in range(ITERATIONS):
            start = time.perf_counter()
            fit.advance()
            clock(f"step {iteration}", start)
        start = time.perf_counter()
        fit.validate()
        clock("validation", start)
        start = time.perf_counter()
        for first in range(0, len(train.states), BATCH):
            train.states[first : first + BATCH]
        clock("in order", start)
    steps = sorted(value for key, value in seconds.items() if key.startswith("step"))
    kept = {key: value for key, value in seconds.items() if not key.startswith("step")}
    size = 2 * 4 * index.rows * math.prod(index.state_shape)
    return {"bytes": size, "peak": peak.bytes, **found, "step": steps[len(steps) // 2], **kept}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if not place.exists():
        make(place, *map(int, sys.argv[2:]))
    sys.stdout.write(json.dumps(measured(place)) + "\n")
