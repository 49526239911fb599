"""Many seeds through one tableau, in blocks on disk that a killed run finds again."""

import hashlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverbench import tensorfile
from solverbench.backbones.base import Backbone, Condition
from solverbench.benchmark.meter import peak_memory, stopwatch
from solverbench.benchmark.rows import Rows, SeededRows, StoredRows, stays
from solverbench.benchmark.spec import digest
from solverbench.errors import SolverBenchError
from solverbench.solvers.tableau import Tableau, sample
from solverbench.tensorfile import Place

FORMAT = "solverbench-samples-1"
BLOCK = 5  # batches a file
Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True, eq=False)
class Samples:
    """Final states of some seeds, with what they cost.

    Sets beyond ``rows.IN_MEMORY`` are read when asked for: index ``noise`` and ``states`` by slices
    or row numbers, which gives tensors.

    Attributes:
        seeds: in order.
        noise: unit-variance noise they started from, (M, C, H, W), on the host.
        states: (M, C, H, W), float32, on the host.
        condition: of the network, or None.
        seconds_per_image: median over batches.
        nfe: counted network calls a sample.
        network_rows: counted rows a sample.
        peak_bytes: largest over blocks.
    """

    seeds: Sequence[int]
    noise: Rows
    states: Rows
    condition: Condition | None
    seconds_per_image: float
    nfe: int
    network_rows: float
    peak_bytes: int


def sample_seeds(
    folder: Path,
    backbone: Backbone,
    tableau: Tableau,
    seeds: Sequence[int],
    batch: int,
    progress: Progress = lambda done, total: None,
) -> Samples:
    """Sample seeds batch by batch; blocks that a former call left are taken over.

    Args:
        folder: for the blocks, ``<first seed>.safetensors`` each.
        backbone: the network.
        tableau: the solver.
        seeds: of noise and conditions.
        batch: images at once.
        progress: told after each batch.

    Returns:
        All samples, in the order of ``seeds``.

    Raises:
        SolverBenchError: where a block on disk is damaged, or noise differs from when it was made.
    """
    key = f"{_identity(tableau)}-{backbone.weights_sha256[:12]}-{batch}"
    size, places, facts, kept = batch * BLOCK, list[Place](), list[Facts](), list[Tensor]()
    small = stays(len(seeds), backbone.state_shape)
    for start in range(0, len(seeds), size):
        block = seeds[start : start + size]
        path = folder / f"{block[0]:08d}.safetensors"
        noise = backbone.noise(block)
        expected = {"key": key, "seeds": digest(list(block)), "noise": _hash(noise)}
        if not path.exists():
            report = _shifted(progress, start, len(seeds))
            _make(path, backbone, tableau, (noise, block), batch, expected, report)
        place, known = _examine(path, expected)
        places.append(place)
        facts.append(known)
        kept += [noise.cpu()] if small else []
        progress(start + len(block), len(seeds))
    states = StoredRows([(place, range(place.shape[0])) for place in places])
    rows = (torch.cat(kept), states[:]) if small else (SeededRows(backbone, seeds), states)
    return _joined(backbone, seeds, rows, facts)


Facts = dict[str, Any]


def _shifted(progress: Progress, start: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(start + done, total)


def _examine(path: Path, expected: dict[str, str]) -> tuple[Place, Facts]:
    """Where the states of a block lie, its checksum verified, and its facts."""
    places, facts = tensorfile.examine(path, FORMAT)
    for name, value in expected.items():
        if facts.get(name) != value:
            raise SolverBenchError(
                f"{path} was made from another {name}; remove {path.parent} and run again"
            )
    return places["states"], facts


def _make(
    path: Path,
    backbone: Backbone,
    tableau: Tableau,
    start: tuple[Tensor, Sequence[int]],
    batch: int,
    facts: dict[str, str],
    progress: Callable[[int], None],
) -> None:
    """Sample one block and write it."""
    (noise, seeds), seconds, states = start, list[float](), []
    condition = backbone.condition(seeds)
    with torch.no_grad():  # what is set up at the first call belongs to no measurement
        sizes = [1] if backbone.player is None else [1, batch, batch]  # played once, then recorded
        for rows in map(slice, sizes):
            given = condition[rows] if condition is not None else None
            sample(backbone, tableau, noise[rows], given)
    with (
        torch.no_grad(),
        backbone.counting() as count,
        peak_memory(backbone.device) as peak,
    ):
        for i in range(0, len(seeds), batch):
            rows = slice(i, i + batch)
            given = condition[rows] if condition is not None else None
            with stopwatch(backbone.device, seconds):
                states.append(sample(backbone, tableau, noise[rows], given))
            progress(min(i + batch, len(seeds)))
    cost = {
        "seconds_per_image": [s / len(made) for s, made in zip(seconds, states, strict=True)],
        "calls": count.samples,  # rows of all evaluations: calls a sample, times samples
        "rows": count.rows,
        "peak_bytes": peak.bytes,
    }
    if not path.exists():  # else another process was faster, and may be reading it
        tensorfile.write(path, FORMAT, {"states": torch.cat(states)}, facts | cost)


def _joined(
    backbone: Backbone, seeds: Sequence[int], rows: tuple[Rows, Rows], facts: list[Facts]
) -> Samples:
    """Noise and states with what all blocks cost."""
    total = {k: sum(int(f[k]) for f in facts) for k in ("calls", "rows")}
    return Samples(
        seeds=seeds,
        noise=rows[0],
        states=rows[1],
        condition=backbone.condition(seeds),
        seconds_per_image=statistics.median(t for f in facts for t in f["seconds_per_image"]),
        nfe=round(total["calls"] / len(seeds)),
        network_rows=total["rows"] / len(seeds),
        peak_bytes=max(int(f["peak_bytes"]) for f in facts),
    )


def _identity(tableau: Tableau) -> str:
    digest = hashlib.sha256(tableau.A.detach().numpy().tobytes())
    digest.update(tableau.tau.detach().numpy().tobytes())
    return digest.hexdigest()[:12]


def _hash(noise: Tensor) -> str:
    return hashlib.sha256(noise.cpu().numpy().tobytes()).hexdigest()[:12]
