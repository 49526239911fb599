"""What the benchmarks share: one thread, an untrained network, a GS fit, timing side by side."""

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.reference import write_discriminator, write_network
from solverbench import tensorfile
from solverbench.backbones.embedded import Cifar16
from solverbench.backbones.pretraining import WEIGHTS_FORMAT, build
from solverbench.benchmark.distances import L2
from solverbench.benchmark.sampling import Samples
from solverbench.benchmark.spec import FitSpec
from solverbench.benchmark.training import Fit, Lesson
from solverbench.solvers.base import Setting
from solverbench.solvers.gs import GS

BATCH = 16
WARMUP = 3
CIFAR16 = {
    "resolution": 16,
    "num_channels": 3,
    "width": 32,
    "mult": [1, 2, 4],
    "num_blocks": 1,
    "attention": [8, 4],
    "num_classes": 10,
}
Work = Callable[[], object]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Name what decides the figures, and leave out who the machine is."""
    machine_info.pop("node", None)
    machine_info["torch"], machine_info["threads"] = torch.__version__, torch.get_num_threads()
    machine_info["system"] = platform.system()


def gs_fit(weights: Path, memory: str, nfe: int, batch: int = BATCH) -> Fit:
    """A GS fit on a cifar16 network with ``batch`` teacher pairs a step; targets are noise."""
    backbone = Cifar16(weights=str(weights))
    seeds = range(2 * batch)
    noise = backbone.noise(seeds)
    pairs = Samples(seeds, noise, noise.flip(0), backbone.condition(seeds), 0.0, 0, 0.0, 0)
    spec = FitSpec(iterations=10_000, batch=batch, train_size=len(seeds), memory=memory)
    solver = GS(Setting(backbone.schedule, nfe, backbone.output))
    return Fit(solver, Lesson(spec, 0, backbone, L2(backbone), pairs, pairs))


def compare(benchmark, work: Work, base: Work, rounds: int, kind: str = "time") -> float:
    """Median of ``work`` time over ``base`` time, run in turns: base, work, base, work.

    The time is that of the processor: on one thread it is the wall clock less the moments in which
    another process had the core. The benchmark's own figures are wall clock, of ``work``; ratios
    of both clocks are in the extra info.
    """
    seconds: dict[str, list[tuple[float, float]]] = {"work": [], "base": []}

    def timed(name: str, what: Work) -> None:
        start = time.process_time(), time.perf_counter()
        what()
        seconds[name].append((time.process_time() - start[0], time.perf_counter() - start[1]))

    def setup() -> tuple[tuple[str, Work], dict[str, object]]:
        timed("base", base)
        return ("work", work), {}

    benchmark.pedantic(timed, setup=setup, rounds=rounds, warmup_rounds=WARMUP)
    for clock, name in enumerate(("processor", "wall")):
        work_s, base_s = ([pair[clock] for pair in seconds[k][-rounds:]] for k in ("work", "base"))
        ratios = sorted(a / b for a, b in zip(work_s, base_s, strict=True))
        benchmark.extra_info[name] = {
            "ratio": round(statistics.median(ratios), 4),
            "quartiles": [round(ratios[len(ratios) * k // 4], 4) for k in (1, 3)],
            "ratio_of_medians": round(statistics.median(work_s) / statistics.median(base_s), 4),
            "base_seconds": round(statistics.median(base_s), 5),
        }
    ratio = float(benchmark.extra_info["processor"]["ratio"])
    benchmark.extra_info["figures"] = {kind: ratio}  # what regress.py reads
    return ratio


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Figures do not depend on how many cores are free."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a cifar16 network that never saw an image: as slow and as large as a trained one.

    Layers that start at zero get small numbers, so that no gradient vanishes.
    """
    torch.manual_seed(0)
    model = build(CIFAR16)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    half = {key: value.half() for key, value in model.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    tensorfile.write(path, WEIGHTS_FORMAT, half, {"network": CIFAR16})
    return path


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the reference network."""
    path = tmp_path_factory.mktemp("reference") / "network.safetensors"
    write_network(path)
    return path


@pytest.fixture(scope="session")
def adversary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the discriminator beside it."""
    path = tmp_path_factory.mktemp("adversary") / "discriminator.safetensors"
    write_discriminator(path)
    return path


@pytest.fixture
def make_fit(untrained: Path) -> Callable[..., Fit]:
    """``gs_fit`` on the untrained network."""
    return partial(gs_fit, untrained)


@pytest.fixture
def side_by_side(benchmark) -> Callable[[Work, Work, int], float]:
    """``compare`` with this test's benchmark."""
    return partial(compare, benchmark)
