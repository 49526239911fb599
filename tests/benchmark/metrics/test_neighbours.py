import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

import solverbench
from solverbench.benchmark.features import reference_of
from solverbench.benchmark.metrics import balls
from solverbench.benchmark.metrics.neighbours import (
    STRICT,
    Convention,
    Coverage,
    Density,
    Precision,
    Recall,
    coverage_ceiling,
    density_coverage,
    neighbour_metrics,
    precision_recall,
)
from solverbench.images import Features, Reference

GOLDENS = Path(solverbench.__file__).parent / "goldens" / "metrics"
EXPECTED = json.loads((GOLDENS / "expected.json").read_text())
SETS = sorted(
    path.stem for path in GOLDENS.glob("*.npz") if "real" in np.load(path, mmap_mode="r").files
)
CASES = [
    (name, k)
    for name in SETS
    for k in (3, 5)
    if f"knn.k{k}.strict.n_precision" in np.load(GOLDENS / f"{name}.npz").files
]
Counts = tuple[int, int, int, int]


def golden(name: str) -> tuple[Tensor, Tensor, dict[str, float]]:
    with np.load(GOLDENS / f"{name}.npz") as file:
        values = {key: float(file[key]) for key in file.files if file[key].ndim == 0}
        return torch.from_numpy(file["fake"]), torch.from_numpy(file["real"]), values


def rows(seed: int, num: int = 40, dim: int = 6) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def counts(x: Tensor, y: Tensor, k: int, convention: Convention, memory: int = 2**30) -> Counts:
    """Of precision, recall, density and coverage, by the two public functions."""
    both = {"generated": x, "reference": y, "k": k, "convention": convention, "max_memory": memory}
    shares, fill = precision_recall(**both), density_coverage(**both)
    return shares.n_precision, shares.n_recall, fill.sum_density, fill.n_coverage


def direct(x: Tensor, y: Tensor, k: int, convention: Convention) -> Counts:
    """The same counts by the definition: all differences, float64."""
    x, y = x.double(), y.double()

    def distances(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None] - b).square().sum(dim=2)

    across = distances(x, y)
    around_x = distances(x, x).sort(dim=1).values[:, k, None]
    around_y = distances(y, y).sort(dim=1).values[:, k]
    strict = STRICT[convention]
    near_y = across < around_y if strict else across <= around_y
    near_x = across < around_x if strict else across <= around_x
    found = near_y.any(dim=1), near_x.any(dim=0), near_y, near_y.any(dim=0)
    return tuple(int(part.sum()) for part in found)


def least_memory(x: Tensor, y: Tensor) -> int:
    """The limit that the refusal of a smaller one names."""
    with pytest.raises(ValueError, match=r"max_memory=1 bytes are too few .* or more\.$") as error:
        precision_recall(generated=x, reference=y, k=1, max_memory=1)
    return int(str(error.value).split()[-3])


@pytest.mark.parametrize("convention", get_args(Convention))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "k"), CASES)
def test_counts_equal_the_golden_counts_in_any_memory(
    name: str, k: int, dtype: torch.dtype, convention: Convention
) -> None:
    generated, reference, values = golden(name)
    prefix = f"knn.k{k}.{'strict' if STRICT[convention] else 'nonstrict'}."
    expected = tuple(
        values[prefix + key] for key in ("n_precision", "n_recall", "sum_density", "n_coverage")
    )
    x, y = generated.to(dtype), reference.to(dtype)
    least = least_memory(x, y)
    for memory in (least, 2 * least, 5 * least, 2**30):
        assert counts(x, y, k, convention, memory) == expected


def test_every_golden_set_with_neighbours_is_used() -> None:
    named = {name for name, entry in EXPECTED.items() if "knn.k3" in json.dumps(entry)}
    assert {name for name, k in CASES if k == 3} == named
    assert len(CASES) >= 2 * len(named) - 1  # `tiny` has too few rows for k=5 on one side


@pytest.mark.parametrize(("name", "k"), CASES)
def test_values_equal_those_of_prdc(name: str, k: int) -> None:
    generated, reference, values = golden(name)
    found = neighbour_metrics(generated=generated, reference=reference, k=k)
    ours = {
        "precision": found[0].precision.value,
        "recall": found[0].recall.value,
        "density": found[1].density.value,
        "coverage": found[1].coverage.value,
    }
    theirs = {key: values[f"prdc.f64.k{k}.{key}"] for key in ours}
    assert ours == pytest.approx(theirs, rel=1e-15)  # one division of equal integers


@pytest.mark.parametrize(("name", "k"), CASES)
def test_values_equal_those_of_torch_fidelity(name: str, k: int) -> None:
    generated, reference, values = golden(name)
    found = precision_recall(generated=generated, reference=reference, k=k)
    prefix = f"torch_fidelity.prc.f64.k{k}."
    # its means are float32
    assert found.precision.value == pytest.approx(values[prefix + "precision"], rel=1e-6)
    assert found.recall.value == pytest.approx(values[prefix + "recall"], rel=1e-6)


def prdc_formula(x: np.ndarray, y: np.ndarray, k: int) -> list[float]:
    """What the package prdc does, with scikit-learn's distances."""
    pairwise = pytest.importorskip("sklearn.metrics").pairwise_distances
    reach_x, reach_y = (np.partition(pairwise(z), k, axis=1)[:, k] for z in (x, y))
    inside = pairwise(y, x) < reach_y[:, None]
    recall = (pairwise(y, x) < reach_x).any(axis=1).mean()
    return [inside.any(axis=0).mean(), recall, inside.sum(axis=0).mean() / k, inside.any(1).mean()]


def test_values_equal_the_formula_of_prdc_on_continuous_features() -> None:
    x, y = 1.1 * rows(0, 300, 32).double(), rows(1, 300, 32).double()
    shares, fill = neighbour_metrics(generated=x, reference=y, k=5, convention="prdc")
    found = [m.value for m in (shares.precision, shares.recall, fill.density, fill.coverage)]
    assert found == pytest.approx(prdc_formula(x.numpy(), y.numpy(), 5), rel=1e-14)


@pytest.mark.parametrize("convention", get_args(Convention))
def test_blocks_that_do_not_divide_the_rows_change_nothing(convention: Convention) -> None:
    x, y = rows(0, 257, 19), 1.2 * rows(1, 331, 19)
    expected = direct(x, y, 4, convention)
    seen = set()
    for memory in (400_000, 700_000, 1_500_000, 2**22, 2**30):
        sizes = balls.plan(memory, 331, 19)
        seen.add(sizes)
        assert counts(x, y, 4, convention, memory) == expected
    parts = {(s.block, s.piece) for s in seen if 331 % s.block and s.block % s.piece}
    assert len(parts) >= 2  # several that divide neither the rows nor the block


@pytest.mark.parametrize("convention", get_args(Convention))
@pytest.mark.parametrize(
    "case", ["offset", "grid", "copies", "constant", "tight", "outlier", "two types", "half"]
)
def test_sets_that_products_cannot_decide_are_exact(case: str, convention: Convention) -> None:
    """The definition itself decides: all differences in float64."""
    x, y = rows(0, 90, 12), 1.1 * rows(1, 110, 12)
    pairs = {
        "offset": (x + 300, y + 300),
        "grid": ((2 * x).round(), (2 * y).round()),
        "copies": (y[:45].repeat(2, 1), y[:55].repeat(2, 1)),
        "constant": (x[:1].repeat(90, 1), y),
        "tight": (x[:3].repeat(30, 1) + 1e-5 * x, x[:2].repeat(55, 1) + 1e-5 * y),
        "outlier": (x, torch.cat([y, 1e6 * y[:1]])),
        "two types": (x.double() + 1e-9, torch.cat([y, x.roll(1, 0)])),
        "half": (x.half(), y.half()),
    }
    x, y = pairs[case]
    for k in (1, 5):
        assert counts(x, y, k, convention) == direct(x, y, k, convention)


@pytest.mark.parametrize("power", [-65, -30, 62])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_power_of_two_scales_nothing(power: int, dtype: torch.dtype) -> None:
    """Squares of these leave the range where float32 products are used."""
    x, y = rows(0, 70).to(dtype), rows(1, 80).to(dtype)
    factor = 2.0**power
    expected = counts(x, y, 3, "prdc")
    assert counts(factor * x, factor * y, 3, "prdc") == expected == direct(x, y, 3, "prdc")


@pytest.mark.parametrize("name", ["relu_equal", "duplicates", "integer_grid"])
@pytest.mark.parametrize("convention", get_args(Convention))
def test_precision_and_recall_swap_with_the_sets(name: str, convention: Convention) -> None:
    x, y, _ = golden(name)
    there, back = counts(x, y, 3, convention), counts(y, x, 3, convention)
    assert there[:2] == back[1::-1]
    assert there[0] > 0
    assert there[1] > 0


def test_order_shift_and_rotation_of_the_rows_change_nothing() -> None:
    x, y = rows(0, 120, 16).double(), 1.2 * rows(1, 140, 16).double()
    expected = counts(x, y, 3, "prdc")
    order = torch.randperm(140, generator=torch.Generator().manual_seed(2))
    turn = torch.linalg.qr(rows(3, 16, 16).double()).Q
    assert counts(x, y[order], 3, "prdc") == expected
    assert counts(x + 7, y + 7, 3, "prdc") == expected
    assert counts(x @ turn, y @ turn, 3, "prdc") == expected


def test_results_say_how_they_were_made() -> None:
    x, y = rows(0, 40), rows(1, 50)
    shares = precision_recall(generated=x, reference=y)
    assert (shares.k, shares.convention) == (3, "kynkaanniemi")
    assert shares.precision.value == shares.n_precision / 40
    assert shares.recall.value == shares.n_recall / 50
    fill = density_coverage(generated=x, reference=y)
    assert (fill.k, fill.convention) == (5, "prdc")
    assert fill.density.value == fill.sum_density / (5 * 40)
    assert fill.coverage.value == fill.n_coverage / 50
    assert fill.coverage.facts == {"k": 5, "convention": "prdc", "ceiling": fill.ceiling}
    for found in (shares.precision, shares.recall, fill.density, fill.coverage):
        assert (found.num_generated, found.num_reference, found.dim) == (40, 50, 6)
        assert found.se is None
        assert found.flags == ("no_se", "unequal_numbers")
    equal = precision_recall(generated=x, reference=y[:40])
    assert equal.precision.flags == ("no_se",)


def test_arrays_integers_and_tensors_with_gradients_are_features_too() -> None:
    x, y = (3 * rows(0)).round(), (3 * rows(1)).round()
    expected = counts(x, y, 3, "prdc")
    locked = x.numpy().copy()
    locked.setflags(write=False)
    assert counts(locked, y.numpy(), 3, "prdc") == expected
    assert counts(x.long(), y.int(), 3, "prdc") == expected
    assert counts(x.clone().requires_grad_(), y[:, ::1].T.contiguous().T, 3, "prdc") == expected


@pytest.mark.parametrize("measure", [precision_recall, density_coverage, neighbour_metrics])
def test_unusable_features_are_refused_in_one_line(measure) -> None:
    x, y = rows(0), rows(1)
    bad = x.clone()
    bad[3, 2], bad[5, 1] = float("nan"), float("inf")
    refused = {
        "2 of 40 generated feature rows hold NaN or infinity.": (bad, y, 3, "prdc"),
        "2 of 40 reference feature rows hold NaN or infinity.": (x, bad, 3, "prdc"),
        "k=7 nearest neighbours need more than 7 rows; got 7 generated rows.": (
            x[:7],
            y,
            7,
            "prdc",
        ),
        "k=7 nearest neighbours need more than 7 rows; got 5 reference rows.": (
            x,
            y[:5],
            7,
            "prdc",
        ),
        "k=0 is no number of nearest neighbours; use 1 or more.": (x, y, 0, "prdc"),
        "unknown convention 'adm'; use one of kynkaanniemi, prdc.": (x, y, 3, "adm"),
        "generated features must be (rows, dimensions); got (40, 2, 3).": (
            x.view(40, 2, 3),
            y,
            3,
            "prdc",
        ),
        "generated features have 6 dimensions, reference features 5; use one extractor for both.": (
            x,
            y[:, :5],
            3,
            "prdc",
        ),
    }
    for message, (generated, reference, k, convention) in refused.items():
        with pytest.raises(ValueError, match=r"rows|features|k=|convention") as error:
            measure(generated=generated, reference=reference, k=k, convention=convention)
        assert str(error.value) == message


def test_the_ceiling_of_coverage_has_the_values_of_the_literature() -> None:
    published = {
        (10_000, 10_000, 3): 0.875,
        (10_000, 10_000, 5): 0.969,
        (10_000, 10_000, 10): 0.999,
        (50_000, 10_000, 5): 0.9999,
        (10_000, 50_000, 5): 0.598,
    }
    for (generated, reference, k), expected in published.items():
        found = coverage_ceiling(generated, reference, k)
        assert found == pytest.approx(expected, abs=5e-4)  # as printed


def test_equal_distributions_reach_the_ceiling_of_coverage() -> None:
    x, y, _ = golden("same_distribution")
    for k in (3, 5):
        found = density_coverage(generated=x, reference=y, k=k)
        assert found.coverage.value == pytest.approx(found.ceiling, abs=0.05)  # 200 rows
        assert found.density.value == pytest.approx(1, abs=0.15)


def features(embedding: Tensor) -> Features:
    return Features(embedding=embedding, texture=embedding)


@pytest.mark.parametrize("name", SETS)
def test_precision_and_recall_of_records_equal_the_plain_count_of_distances(name: str) -> None:
    """The count that records so far were made with: strict, k=5, equal numbers, cdist."""
    generated, reference, _ = golden(name)
    num = min(len(generated), len(reference))
    x, y = generated[:num], reference[:num]

    def share(points: Tensor, centres: Tensor) -> float:
        mode = "donot_use_mm_for_euclid_dist"
        points, centres = points.double(), centres.double()
        reach = torch.cdist(centres, centres, compute_mode=mode).kthvalue(6, dim=1).values
        inside = torch.cdist(points, centres, compute_mode=mode) < reach
        return int(inside.any(dim=1).sum()) / len(points)

    both = {"generated": features(generated), "reference": reference_of(features(reference), "")}
    assert Precision().compute(**both) == share(x, y)
    assert Recall().compute(**both) == share(y, x)


def test_density_and_coverage_are_those_of_equal_numbers() -> None:
    x, y = rows(0, 60), 1.3 * rows(1, 50)
    both = {"generated": features(x), "reference": reference_of(features(y), "")}
    plain = density_coverage(generated=x[:50], reference=y)
    assert Density().compute(**both) == plain.density.value
    assert Coverage().compute(**both) == plain.coverage.value
    assert Density().label("digits") == "density[digits]"
    assert Coverage().label("digits") == "coverage[digits]"
    moments = both["reference"].embedding
    with pytest.raises(ValueError, match="rows"):
        Coverage().compute(
            generated=features(x), reference=Reference(moments, moments, None, "", "")
        )


def test_rows_are_compared_where_they_are_or_on_an_accelerator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert balls.place(torch.zeros(2, 2)).type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert balls.place(torch.zeros(2, 2)).type == "cuda"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("convention", get_args(Convention))
def test_counts_on_cuda_are_those_of_the_host(
    convention: Convention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows on the host go to CUDA too, where there is one."""
    for name in SETS:
        x, y, _ = golden(name)
        found = counts(x, y, 3, convention), counts(x.cuda(), y, 3, convention)
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: False)
            assert found == (counts(x, y, 3, convention),) * 2
