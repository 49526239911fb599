import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from solverbench.benchmark.metrics import balls


def rows(seed: int, num: int, dim: int) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def hits(x: Tensor, y: Tensor) -> balls.Hits:
    return balls.hits(x, y, 1, strict=False, max_memory=2**30)


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_no_approximate_distance_leaves_its_bound(offset: float, spread: float) -> None:
    base = rows(0, 1, 700)
    x, y = (base + spread * rows(seed, 60, 700) + offset for seed in (1, 2))
    sizes = balls.plan(2**30, 60, 700)
    one, other = balls.PointSet.of(x, sizes), balls.PointSet.of(y, sizes)
    (piece,) = balls.Distances.between(one, other, sizes).pieces()
    truth = (x.double()[:, None] - y.double()).square().sum(dim=2)
    error = (piece.squared.double() - truth).abs()
    assert (error <= piece.bound.double()).all()
    assert (piece.bound < 1e-3 * piece.squared).all()  # else everything would be settled


def test_a_settled_distance_depends_on_its_two_rows_alone() -> None:
    values = rows(0, 50, 701).double()
    together = balls.sum_of_squares(values.clone())
    alone = torch.cat([balls.sum_of_squares(row[None].clone()) for row in values])
    assert torch.equal(together, alone)
    torch.testing.assert_close(together, values.square().sum(dim=1), rtol=1e-14, atol=0)


def test_equal_rows_are_found_and_colliding_hashes_are_not_equal_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [3.0, 3.0]])
    sizes = balls.plan(2**20, 4, 2)
    found = balls.first_equal(values, sizes)
    assert found is not None
    assert found.tolist() == [0, 1, 0, 3]
    assert balls.first_equal(values[1:], sizes) is None
    monkeypatch.setattr(balls.torch, "randint", lambda *_, **__: torch.zeros(2).long())
    assert balls.first_equal(values, sizes) is None  # now the first two collide
    assert hits(values, values) == balls.Hits(points=4, balls=4, pairs=2 + 2 + 3 + 4)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_settings_of_products_neither_matter_nor_change(precision: str) -> None:
    x, y = rows(0, 200, 64), rows(1, 200, 64)
    expected, before = hits(x, y), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert hits(x, y) == expected
        assert torch.get_float32_matmul_precision() == precision
        with balls.full_float32():
            float32 = torch.backends.mkldnn.matmul.fp32_precision
            assert (float32, torch.backends.cuda.matmul.fp32_precision) == ("ieee", "ieee")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


MEASURE = """
import json, torch
from solverbench.benchmark.meter import peak_memory
from solverbench.benchmark.metrics.neighbours import neighbour_metrics
torch.set_num_threads(1)
x, y = torch.randn(2, 4000, 512, generator=torch.Generator().manual_seed(0)).unbind()
same = x[:1].expand(1500, 512).clone(), y[:1500]
for (generated, reference), limit in (((x, y), 2**24), ((x, y), 2**30), (same, 2**24)):
    sets = {"generated": generated, "reference": reference}
    neighbour_metrics(**{key: rows[:300] for key, rows in sets.items()})  # loads what is lazy
    with peak_memory(torch.device("cpu")) as peak:
        shares, fill = neighbour_metrics(**sets, max_memory=limit)
    print(json.dumps([peak.bytes, shares.n_precision, shares.n_recall, fill.sum_density]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's counters")
def test_the_limit_on_memory_is_kept() -> None:
    """Resident high-water marks of a fresh process.

    In the last case all generated rows are equal, so that whole pieces must be settled.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    (little, *counted), (much, *again), (equal, *_) = map(json.loads, done.stdout.splitlines())
    assert little < 2**24
    assert equal < 2**24
    assert much > 1.5 * little  # it is the limit that keeps the others low
    assert counted == again
