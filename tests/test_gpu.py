"""What only a CUDA device can show; skipped where there is none."""

import pytest
import torch

from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.meter import peak_memory
from solverbench.solvers.tableau import sample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_samples_on_cuda_are_those_of_the_cpu() -> None:
    """TF32 is off by default for matrix products; convolutions may use it: 1e-2 covers ten bits."""
    states = []
    for device in ("cpu", "cuda"):
        backbone = load_backbone("digits", device=device)
        tableau = load_solver("dpmpp-3m", backbone, nfe=6).tableau()
        states.append(sample(backbone, tableau, backbone.noise(range(16))).cpu())
    assert (states[0] - states[1]).abs().max() < 1e-2


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_gradients_reach_the_solver_through_cuda(memory: str) -> None:
    backbone = load_backbone("digits", device="cuda")
    solver = load_solver("gs", backbone, nfe=4)
    states = sample(backbone, solver.tableau(), backbone.noise(range(4)), memory=memory)  # type: ignore[arg-type]
    states.square().mean().backward()
    for parameter in solver.parameters():  # type: ignore[attr-defined]
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_peak_memory_on_cuda_counts_what_was_allocated() -> None:
    with peak_memory(torch.device("cuda")) as peak:
        torch.zeros(2**20, device="cuda")
    assert 2**22 <= peak.bytes < 2**23
