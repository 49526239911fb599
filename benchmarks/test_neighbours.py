"""Neighbour metrics against the packages that others use, on the same features in one run.

Each runs in a fresh process of one thread. Bytes are the resident high-water mark above what was
there once the features and the libraries were loaded.
"""

import json
import os
import subprocess
import sys

import pytest

NUM, DIM, K = 10_000, 2048, 5
MEMORY = 2**27
LEANER = 5.0
COMMON = """
import json, sys, time
import numpy as np, torch
from solverbench.benchmark.meter import peak_memory
torch.set_num_threads(1)
num, dim, k, memory = (int(value) for value in sys.argv[1:])
rng = torch.Generator().manual_seed(0)
x, y = (torch.randn(num, dim, generator=rng).mul_(scale).relu_() for scale in (1.02, 1.0))
def measure(work):
    work(x[:200], y[:200])  # loads what is lazy
    start = time.process_time(), time.perf_counter()
    with peak_memory(torch.device("cpu")) as peak:
        values = work(x, y)
    seconds = time.process_time() - start[0], time.perf_counter() - start[1]
    print(json.dumps({"values": values, "bytes": peak.bytes, "processor": seconds[0],
                      "wall": seconds[1]}))
"""
WORK = {
    "solverbench": """
from solverbench.benchmark.metrics.neighbours import neighbour_metrics
def work(x, y):
    a, b = neighbour_metrics(generated=x, reference=y, k=k, convention="prdc", max_memory=memory)
    return [m.value for m in (a.precision, a.recall, b.density, b.coverage)]
measure(work)
""",
    # the arithmetic of the package prdc, which calls these two functions
    "prdc formula": """
from sklearn.metrics import pairwise_distances
def distances(a, b):
    return pairwise_distances(a, b, metric="euclidean", n_jobs=8)
def radii(a):
    table = distances(a, a)
    nearest = np.argpartition(table, k + 1, axis=-1)[..., : k + 1]
    return np.take_along_axis(table, nearest, axis=-1).max(axis=-1)
def work(x, y):
    around_y, around_x = radii(y.numpy()), radii(x.numpy())
    across = distances(y.numpy(), x.numpy())
    inside = across < around_y[:, None]
    return [
        float((across < around_y[:, None]).any(axis=0).mean()),
        float((across < around_x[None]).any(axis=1).mean()),
        float(inside.sum(axis=0).mean() / k),
        float((across.min(axis=1) < around_y).mean()),
    ]
measure(work)
""",
    "prdc": """
import prdc
def work(x, y):
    found = prdc.compute_prdc(real_features=y.numpy(), fake_features=x.numpy(), nearest_k=k)
    return [float(found[key]) for key in ("precision", "recall", "density", "coverage")]
measure(work)
""",
    "torch-fidelity": """
from torch_fidelity.metric_prc import calculate_precision_recall_full
def work(x, y):
    found = calculate_precision_recall_full(x, y, k)  # since 0.4.0 generated first
    return [float(value) for value in tuple(found)[:2]]
measure(work)
""",
}
PACKAGES = {"prdc": "prdc", "torch-fidelity": "torch_fidelity", "prdc formula": "sklearn"}


def run(name: str) -> dict:
    command = [sys.executable, "-c", COMMON + WORK[name]]
    numbers = [str(value) for value in (NUM, DIM, K, MEMORY)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command + numbers, env=environment, capture_output=True, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def ours() -> dict:
    return run("solverbench")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", PACKAGES)
def test_neighbour_metrics_take_a_fraction_of_the_memory_and_no_more_time(
    benchmark, ours: dict, name: str
) -> None:
    """Time is the processor's: on one thread the wall clock less what other processes took.

    torch-fidelity computes two of the four, in float32; its figures are recorded.
    """
    pytest.importorskip(PACKAGES[name])
    theirs = benchmark.pedantic(run, args=(name,), rounds=1, iterations=1)
    benchmark.extra_info |= {
        "ours": ours,
        "theirs": theirs,
        "bytes": round(theirs["bytes"] / ours["bytes"], 2),
        "seconds": round(theirs["processor"] / ours["processor"], 2),
    }
    shared = slice(len(theirs["values"]))
    assert ours["values"][shared] == pytest.approx(theirs["values"], rel=1e-3)  # theirs: float32
    assert theirs["bytes"] >= LEANER * ours["bytes"]
    if name != "torch-fidelity":
        assert theirs["processor"] >= ours["processor"]
