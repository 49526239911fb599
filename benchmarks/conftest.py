"""What the benchmarks share: one thread, an untrained network, a GS fit, and timing side by side."""

import platform
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from solverbench import tensorfile
from solverbench.backbones.embedded import Cifar16
from solverbench.backbones.pretraining import WEIGHTS_FORMAT, build
from solverbench.benchmark.distances import L2
from solverbench.benchmark.meter import stopwatch
from solverbench.benchmark.sampling import Samples
from solverbench.benchmark.spec import FitSpec
from solverbench.benchmark.training import Fit, Lesson
from solverbench.solvers.base import Setting
from solverbench.solvers.gs import GS

BATCH = 16
WARMUP = 3
CPU = torch.device("cpu")
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


def compare(benchmark, work: Work, base: Work, rounds: int) -> float:
    """Median of ``work`` time over ``base`` time, run in turns: base, work, base, work.

    The benchmark's own figures are those of ``work``; the ratio and its quartiles are in the
    extra info.
    """
    seconds: dict[str, list[float]] = {"work": [], "base": []}

    def timed(name: str, what: Work) -> None:
        with stopwatch(CPU, seconds[name]):
            what()

    benchmark.pedantic(
        timed,
        setup=lambda: (timed("base", base), (("work", work), {}))[1],
        rounds=rounds,
        warmup_rounds=WARMUP,
    )
    pairs = list(zip(seconds["work"], seconds["base"], strict=True))[-rounds:]
    ratios = [a / b for a, b in pairs]
    ratio = statistics.median(ratios)
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratio] * 3
    benchmark.extra_info |= {
        "ratio": round(ratio, 4),
        "quartiles": [round(quartiles[0], 4), round(quartiles[2], 4)],
        "ratio_of_medians": round(
            statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs), 4
        ),
        "base_seconds": round(statistics.median(b for _, b in pairs), 5),
    }
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


@pytest.fixture
def make_fit(untrained: Path) -> Callable[..., Fit]:
    """``gs_fit`` on the untrained network."""
    return partial(gs_fit, untrained)


@pytest.fixture
def side_by_side(benchmark) -> Callable[[Work, Work, int], float]:
    """``compare`` with this test's benchmark."""
    return partial(compare, benchmark)
