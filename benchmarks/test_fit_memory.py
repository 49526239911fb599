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
from torch.profiler import ProfilerActivity, profile

from solverbench.benchmark.meter import peak_memory
from solverbench.benchmark.training import Fit
from solverbench.files import write_text

FEW, MANY = 4, 10
STEPS = 3  # the optimiser's state appears in the first
# With its default settings glibc soon takes large blocks from a heap that it cannot shrink while
# any small block lives behind them. A fixed threshold gives every large block a mapping of its
# own, which goes back to the system when it is freed.
ALLOCATORS = {"default": {}, "mapped": {"MALLOC_MMAP_THRESHOLD_": "65536"}}


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_peak_memory_grows_with_the_nfe_only_where_it_is_stored(
    benchmark, make_fit, untrained: Path, tmp_path: Path, memory: str
) -> None:
    """Growth from NFE 4 to NFE 10; ``store`` shows that the measures see activations at all."""
    fit = make_fit(memory, MANY)
    assert sum(p.numel() for p in fit.lesson.backbone.network.parameters()) >= 1_000_000
    peaks = {
        "live": [live_bytes(make_fit(memory, nfe), tmp_path / "trace.json") for nfe in (FEW, MANY)]
    }
    for name, settings in ALLOCATORS.items():
        peaks[f"resident_{name}"] = [
            resident_bytes(untrained, memory, nfe, settings) for nfe in (FEW, MANY)
        ]
    growth = {name: many / few - 1 for name, (few, many) in peaks.items()}
    benchmark.extra_info |= {"peak_bytes": peaks, "growth": growth}
    benchmark.pedantic(fit.advance, rounds=5, warmup_rounds=1, iterations=1)
    if memory == "recompute":
        assert growth["live"] < 0.05  # states and outputs: 100 kB a call beside 43 MB
        assert growth["resident_mapped"] < 0.10
    else:
        assert min(growth.values()) > 1.0  # 10 / 4 - 1 = 1.5, less what does not grow


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
        [sys.executable, __file__, str(weights), memory, str(nfe), str(result)],
        env=os.environ | threads | settings,
        check=True,
        capture_output=True,
        timeout=120,
    )
    return int(json.loads(result.read_text()))


def child(weights: str, memory: str, nfe: str, result: str) -> None:
    """Train a little and write the peak; a batch of one loads what is loaded lazily."""
    from conftest import gs_fit

    gs_fit(Path(weights), memory, int(nfe), batch=1).advance()
    fit = gs_fit(Path(weights), memory, int(nfe))
    with peak_memory(fit.lesson.backbone.device) as peak:
        for _ in range(STEPS):
            fit.advance()
    write_text(Path(result), json.dumps(peak.bytes))


if __name__ == "__main__":
    child(*sys.argv[1:])
