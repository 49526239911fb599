"""The fit loop's guards."""

import os
import subprocess
import sys

import pytest
import torch

from solverbench.benchmark.distances import L2
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.sampling import Samples
from solverbench.benchmark.spec import FitSpec
from solverbench.benchmark.training import MAX_SKIPPED, Fit, FitDivergedError, Lesson
from solverbench.solvers import LearnableSolver


@pytest.fixture
def fit() -> Fit:
    backbone = load_backbone("digits")
    solver = load_solver("gs", backbone, 3)
    assert isinstance(solver, LearnableSolver)
    noise = backbone.noise(range(8))
    pairs = Samples(range(8), noise, 0.1 * noise, None, 0.0, 3, 3.0, 0)
    spec = FitSpec(iterations=40, batch=4, train_size=8, validation_size=8)
    return Fit(solver, Lesson(spec, 0, backbone, L2(backbone), pairs, pairs))


def test_a_step_after_which_nothing_can_be_sampled_is_undone(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {key: value.clone() for key, value in fit.solver.state_dict().items()}

    def too_far(batch: object, scale: float) -> dict[str, torch.Tensor]:
        fit.solver.xi.data -= 10.0  # network times below 0
        return {"loss": torch.tensor(1.0)}

    monkeypatch.setattr(fit.rule, "step", too_far)
    fit.advance()
    assert fit.skipped == 1
    assert fit.ema.num_updates == 0
    assert all(torch.equal(value, before[key]) for key, value in fit.solver.state_dict().items())
    for _ in range(MAX_SKIPPED - 2):
        fit.advance()
    with pytest.raises(FitDivergedError, match="no usable step in 20 of them"):
        fit.advance()


def test_a_usable_step_is_kept_and_counted(fit: Fit) -> None:
    before = fit.solver.xi.detach().clone()
    fit.advance()
    assert fit.skipped == 0
    assert fit.ema.num_updates == 1
    assert not torch.equal(fit.solver.xi.detach(), before)


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc on Linux")
def test_freed_memory_is_kept_for_the_next_step_unless_the_environment_decides() -> None:
    """Page faults of a process that takes and frees 64 MB ten times, with and without the wish."""
    code = (
        "import resource, torch\n"
        "from solverbench.benchmark.meter import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "def work():\n"
        "    parts = [torch.ones(2**18) for _ in range(64)]\n"
        "work()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): work()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    found = []
    for extra in ({}, {"MALLOC_MMAP_THRESHOLD_": "65536"}):
        ended = subprocess.run(
            [sys.executable, "-c", code],
            env=clean | extra,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        found.append(int(ended.stdout))
    assert found[0] < 20_000  # 16,384 pages a round, were they given back
    assert found[1] > 100_000
