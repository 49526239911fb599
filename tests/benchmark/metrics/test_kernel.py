import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import solverbench
from solverbench.benchmark import metrics as m
from solverbench.benchmark.metrics import kernel

GOLDENS = Path(solverbench.__file__).parent / "goldens" / "metrics"
FILES = {p.stem: np.load(p).files for p in GOLDENS.glob("*.npz")}


def sets(key: str) -> list[str]:
    """Golden sets that hold a value."""
    return sorted(name for name, held in FILES.items() if key in held)


def rows(seed: int, num: int = 60, dim: int = 5) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def test_every_golden_value_has_its_sets() -> None:
    counts = [
        len(sets(key))
        for key in (
            "kid.mean",
            "kid.full_unbiased",
            "cmmd.biased_x1000",
            "mind.1000proj_seed2020",
        )
    ]
    assert counts == [9, 4, 4, 9]


@pytest.mark.parametrize("name", sets("kid.mean"))
@pytest.mark.parametrize("given_as", ["tensors", "arrays"])
def test_kernel_distance_draws_and_gives_what_torch_fidelity_does(golden, name, given_as) -> None:
    generated, reference, values = golden(name)
    if given_as == "arrays":
        generated, reference = generated.numpy(), reference.numpy()
    found = m.kernel_distance(
        generated=generated,
        reference=reference,
        subsets=int(values["kid.subsets"]),
        subset_size=int(values["kid.subset_size"]),
    )
    assert found.value == pytest.approx(values["kid.mean"], rel=1e-6)  # the README's tolerance
    assert found.std == pytest.approx(values["kid.std"], rel=1e-6)
    assert found.x1000 == 1000 * found.value
    assert found.se is None
    assert found.se_at_least == pytest.approx(found.std / math.sqrt(found.subsets))


@pytest.mark.parametrize("name", sets("kid.full_unbiased"))
@pytest.mark.parametrize("block", [7, 2048])
def test_kernel_distance_of_all_rows_is_golden_whatever_the_block(
    golden, name, block, monkeypatch
) -> None:
    monkeypatch.setattr(kernel, "BLOCK", block)
    generated, reference, values = golden(name)
    found = m.full_kernel_distance(generated=generated, reference=reference)
    expected = values["kid.full_unbiased"]
    assert found.value == pytest.approx(expected, rel=1e-8, abs=1e-9)  # the README's


@pytest.mark.parametrize("name", sets("cmmd.biased_x1000"))
def test_cmmd_is_golden(golden, name) -> None:
    generated, reference, values = golden(name)
    found = m.cmmd(generated=generated, reference=reference)
    assert found.value == pytest.approx(values["cmmd.biased_x1000"], rel=1e-6)  # the README's


@pytest.mark.parametrize("name", sets("mind.1000proj_seed2020"))
def test_mind_is_golden(golden, name) -> None:
    generated, reference, values = golden(name)
    found = m.mind(generated=generated, reference=reference)
    assert found.value == pytest.approx(values["mind.1000proj_seed2020"], rel=1e-3)  # the README's
    assert found.facts["rows"] == min(len(generated), len(reference))


def test_kernel_distances_are_capped_at_the_smaller_set_and_seeded() -> None:
    x, y = rows(0), rows(1, 50)
    found = m.kernel_distance(generated=x, reference=y, subsets=5)
    assert found.subset_size == found.facts["subset_size"] == 50
    assert found == m.kernel_distance(generated=x, reference=y, subsets=5)
    other = m.kernel_distance(generated=x, reference=y, subsets=5, seed=1)
    assert other.value != found.value


def test_unbiased_distances_of_one_distribution_scatter_around_zero() -> None:
    found = [
        m.full_kernel_distance(generated=rows(2 * i), reference=rows(2 * i + 1, 40)).value
        for i in range(200)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(200)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_distances_keep_what_they_must_keep(seed: int) -> None:
    x, y = rows(seed), rows(seed + 1, 70) * 1.5
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    turn = torch.linalg.qr(rows(seed + 2, 5)).Q
    for measure in (m.full_kernel_distance, m.cmmd):
        base = measure(generated=x, reference=y).value
        within = {"rel": 1e-5, "abs": 1e-6}  # features are rounded to float32 after the turn
        assert measure(generated=x[order], reference=y).value == pytest.approx(base, rel=1e-9)
        assert measure(generated=x @ turn, reference=y @ turn).value == pytest.approx(
            base, **within
        )
        assert measure(generated=y, reference=x).value == pytest.approx(base, rel=1e-9)
    assert m.cmmd(generated=x, reference=x).value <= 1e-12
    assert m.mind(generated=x, reference=x[order]).value <= 1e-10  # float32 sums of one order
    shifted = m.mind(generated=x + 0.5, reference=x).value
    assert shifted == pytest.approx(3 * 5 * 0.25, rel=0.15)  # 1000 directions; E of u^2 is 1 / D


def test_cmmd_does_not_depend_on_blocks_and_reads_directions_only(monkeypatch) -> None:
    x, y = rows(0), rows(1, 50)
    base = m.cmmd(generated=x, reference=y).value
    monkeypatch.setattr(sys.modules["solverbench.benchmark.metrics.cmmd"], "BLOCK", 7)
    assert m.cmmd(generated=2 * x, reference=y).value == pytest.approx(base, rel=1e-6)  # float32


@pytest.mark.parametrize(
    "measure", [m.kernel_distance, m.full_kernel_distance, m.mind, m.cmmd], ids=lambda f: f.__name__
)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:1], r"M >= 2; got \(1, 5\)"),
        (lambda x: x[:, :4], "generated features have 4 dimensions, reference features 5"),
        (lambda x: x.index_fill(0, torch.tensor([3]), math.nan), "1 of 60 feature rows"),
    ],
)
def test_unusable_features_are_refused_in_one_line(measure, spoil, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        measure(generated=spoil(rows(0)), reference=rows(1))
    assert "\n" not in str(caught.value)


def test_senseless_options_are_refused() -> None:
    x, y = rows(0), rows(1)
    with pytest.raises(ValueError, match="one subset of two rows; got 0 of 1000"):
        m.kernel_distance(generated=x, reference=y, subsets=0)
    with pytest.raises(ValueError, match="got 100 of 1"):
        m.kernel_distance(generated=x, reference=y, subset_size=1)
    with pytest.raises(ValueError, match="at least one direction; got 0"):
        m.mind(generated=x, reference=y, directions=0)
    with pytest.raises(ValueError, match="sigma must be positive; got 0"):
        m.cmmd(generated=x, reference=y, sigma=0)
    with pytest.raises(ValueError, match="a feature row is zero"):
        m.cmmd(generated=x.index_fill(0, torch.tensor([1]), 0.0), reference=y)


def test_read_only_and_integer_arrays_are_welcome() -> None:
    x = rows(0).numpy()
    x.setflags(write=False)
    assert m.mind(generated=x, reference=x).value == 0
    whole = np.arange(40).reshape(8, 5)
    assert m.frechet_distance(generated=whole, reference=whole).value <= 1e-9
