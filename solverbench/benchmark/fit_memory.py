"""How much of a fit is held at once, and the probe that finds what fits into a budget of bytes."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from solverbench.benchmark.meter import peak_memory
from solverbench.benchmark.training import Fit, Lesson
from solverbench.errors import SolverBenchError
from solverbench.files import write_text
from solverbench.solvers.base import LearnableSolver
from solverbench.solvers.fitting import Holding

MARGIN = 1.1  # of a prediction: allocators round and cut
FAR = 1e18  # bytes: more than fits anywhere
STEPS = 2  # of a probe; the first loads what is loaded lazily
FILE = "holding.json"
Measure = Callable[[Holding], tuple[float, float]]  # peak bytes, seconds; infinite: out of memory


class Growth(NamedTuple):
    """Bytes of a training step: base + pairs * (pair + (calls kept - 1) * call)."""

    base: float
    pair: float
    call: float

    def of(self, stored: int, size: int) -> float:
        """Predicted peak where ``stored`` calls of ``size`` pairs are kept."""
        return self.base + size * (self.pair + max(stored - 1, 0) * self.call)


def settled(solver: LearnableSolver, lesson: Lesson, folder: Path) -> Holding:
    """What a fit holds: as its spec says, or as a probe finds; a resumed run keeps what it had.

    Args:
        solver: untrained; copies of it are probed.
        lesson: what to learn.
        folder: of the run, for the finding.

    Raises:
        SolverBenchError: where no setting fits into ``max_memory``.
    """
    spec, path = lesson.spec, folder / FILE
    if spec.max_memory is None:
        return Holding(spec.memory, spec.micro_batch)
    if path.exists():
        return Holding(*json.loads(path.read_text()))

    def measure(holding: Holding) -> tuple[float, float]:
        fit = Fit(_copy_of(solver), lesson, holding)
        fit.rule.skip_ahead()
        with peak_memory(lesson.backbone.device) as peak:
            for _ in range(STEPS):
                start = time.perf_counter()
                try:
                    fit.advance()
                except torch.OutOfMemoryError:
                    return math.inf, math.inf
        seconds = time.perf_counter() - start
        return (math.inf, math.inf) if fit.portions.halved else (peak.bytes, seconds)

    found = cheapest(measure, solver.setting.nfe, spec.batch, spec.max_memory)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found))
    return found


def _copy_of(solver: LearnableSolver) -> LearnableSolver:
    made = type(solver)(solver.setting, **solver.options)
    made.load_state_dict(solver.state_dict())
    return made


def cheapest(measure: Measure, nfe: int, batch: int, limit: int) -> Holding:
    """The quickest setting whose step stays within a limit.

    Three steps of one and two pairs tell how memory grows, so nothing much larger than the limit
    is ever tried. For the whole batch, its half, its quarter and so on, the most calls that fit
    are kept; the first three such settings are measured.

    Args:
        measure: peak bytes and seconds of a step.
        nfe: calls a sample.
        batch: pairs of a step.
        limit: bytes above what was in use before.

    Raises:
        SolverBenchError: where one pair, kept nowhere, is too much.
    """
    growth = _growth(measure, nfe, batch)
    tried: list[tuple[float, Holding]] = []
    least = growth.of(0, 1) * MARGIN
    for holding in _fitting(growth, nfe, batch, limit / MARGIN):
        peak, seconds = measure(holding)
        if peak <= limit:
            tried.append((seconds, holding))
        else:
            least = max(least, limit * MARGIN)
        if len(tried) == 3:
            break
    if not tried:
        raise SolverBenchError(
            f"fit.max_memory of {limit / 1e6:.3f} MB is too little: a step with one pair at a time "
            f"needs some {least / 1e6:.0f} MB; raise it"
        )
    return min(tried, key=lambda pair: pair[0])[1]


def _growth(measure: Measure, nfe: int, batch: int) -> Growth:
    one = measure(Holding("recompute", 1))[0]
    if math.isinf(one):
        raise SolverBenchError("a training step with one pair at a time is out of memory here")
    two = min(measure(Holding("recompute", 2))[0], FAR) if batch > 1 else one
    all_calls = min(measure(Holding("store", 1))[0], FAR) if nfe > 1 else one
    pair = max(two - one, 0)
    return Growth(one - pair, pair, max(all_calls - one, 0) / max(nfe - 1, 1))


def _fitting(growth: Growth, nfe: int, batch: int, limit: float) -> Iterator[Holding]:
    """For each size of a part, the setting that keeps most calls within the limit."""
    size = batch
    while size:
        kept = [stored for stored in range(nfe + 1) if growth.of(stored, size) <= limit]
        if kept:
            memory = _memory(max(kept), nfe)
            yield Holding(memory, None if size == batch else size)
        size //= 2


def _memory(stored: int, nfe: int) -> Literal["store", "recompute"] | int:
    if stored in (0, nfe):
        return "store" if stored else "recompute"
    return stored
