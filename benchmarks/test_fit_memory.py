"""With ``memory="recompute"`` the peak of a training step does not grow with the NFE.

Two measures. Live bytes: what PyTorch's allocator handed out and did not get back, exact and equal
in every run. Resident bytes: what the operating system gave to a fresh child process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.reference import BATCH, fit_of
from solverbench.benchmark.meter import peak_memory
from solverbench.benchmark.training import Fit
from solverbench.files import write_text
from solverbench.solvers.tableau import sample

pytestmark = pytest.mark.timeout(1200)  # on a machine that does other work

FEW, MANY = 4, 8
STEPS = 3  # the optimiser's state appears in the first
SAVED, SAVED_PER_CALL = 10e6, 1.5e6  # bytes
# With its default settings glibc soon takes large blocks from a heap that it cannot shrink while
# any small block lives behind them. A fixed threshold gives every large block a mapping of its
# own, which goes back to the system when it is freed.
ALLOCATORS = {"default": {}, "mapped": {"MALLOC_MMAP_THRESHOLD_": "65536"}}


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_peak_memory_grows_with_the_nfe_only_where_it_is_stored(
    benchmark, reference: Path, tmp_path: Path, memory: str
) -> None:
    """Growth from NFE 4 to NFE 8; ``store`` shows that the measures see activations at all."""
    fits = [fit_of(reference, memory, nfe) for nfe in (FEW, MANY)]
    peaks = {"live": [live_bytes(fit, tmp_path / "trace.json") for fit in fits]}
    for name, settings in ALLOCATORS.items():
        peaks[f"resident_{name}"] = [
            resident_bytes(reference, memory, nfe, settings) for nfe in (FEW, MANY)
        ]
    growth = {name: many / few - 1 for name, (few, many) in peaks.items()}
    benchmark.extra_info |= {"peak_bytes": peaks, "growth": growth}
    benchmark.pedantic(fits[-1].advance, rounds=3, warmup_rounds=1, iterations=1)
    if memory == "recompute":
        assert growth["live"] < 0.05  # states and outputs: 200 kB a call
        assert growth["resident_mapped"] < 0.10
    else:
        assert min(growth.values()) > 0.7  # 8 / 4 - 1 = 1, less what does not grow


@pytest.mark.quick
@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_quick_bytes_kept_for_the_backward_pass(benchmark, reference: Path, memory: str) -> None:
    """Figure: over what one bare forward pass with a graph keeps, at NFE 8."""
    fits = {nfe: fit_of(reference, memory, nfe) for nfe in (FEW, MANY)}
    saved: dict[int, int] = {}

    def measure() -> None:
        saved.update({nfe: saved_by_sampling(fit) for nfe, fit in fits.items()})

    benchmark.pedantic(measure, rounds=1)
    network = fits[FEW].lesson.backbone.network
    x = fits[FEW].lesson.train.noise[:BATCH].clone().requires_grad_()
    bare = saved_bytes(lambda: network(x, torch.ones(())))
    growth = (saved[MANY] - saved[FEW]) / (MANY - FEW)
    benchmark.extra_info |= {"saved_bytes": saved, "growth_per_call": growth, "bare_call": bare}
    benchmark.extra_info["figures"] = {"bytes": saved[MANY] / bare}
    if memory == "recompute":
        assert saved[MANY] <= SAVED
        assert growth <= SAVED_PER_CALL
    else:
        assert saved[MANY] >= 0.9 * MANY * bare  # the measure sees activations


def saved_by_sampling(fit: Fit) -> int:
    """Bytes that a pass of sampling keeps for its gradient, the step's own table left out."""
    tableau, noise = fit.solver.tableau().leaf(), fit.lesson.train.noise[:BATCH]
    backbone, memory = fit.lesson.backbone, fit.spec.memory
    return saved_bytes(lambda: sample(backbone, tableau, noise, memory=memory))


def saved_bytes(forward) -> int:
    """Bytes of the tensors that autograd saves in a forward pass, each once; no parameters."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    del result  # until here, so that no two tensors have had one address
    return sum(sizes.values())


def live_bytes(fit: Fit, path: Path) -> int:
    """Peak of tensor bytes in some training steps, counted by PyTorch's allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(STEPS):
            fit.advance()
    profiler.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e["name"] == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


def resident_bytes(weights: Path, memory: str, nfe: int, settings: dict[str, str]) -> int:
    """Peak resident size of some training steps in a child process, above its size before."""
    result = weights.with_name(f"{memory}-{nfe}.json")
    threads = {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", __name__, str(weights), memory, str(nfe), str(result)],
        cwd=Path(__file__).parents[1],
        env=os.environ | threads | settings,
        check=True,
        capture_output=True,
        timeout=120,
    )
    return int(json.loads(result.read_text()))


def child(weights: str, memory: str, nfe: str, result: str) -> None:
    """Train a little and write the peak; a batch of one loads what is loaded lazily."""
    fit_of(Path(weights), memory, int(nfe), batch=1).advance()
    fit = fit_of(Path(weights), memory, int(nfe))
    with peak_memory(fit.lesson.backbone.device) as peak:
        for _ in range(STEPS):
            fit.advance()
    write_text(Path(result), json.dumps(peak.bytes))


if __name__ == "__main__":
    child(*sys.argv[1:])
