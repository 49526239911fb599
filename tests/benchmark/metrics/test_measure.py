"""What metric plugins add to their values: errors, and what each image has to do with them."""

import math

import pytest
import torch
from torch import Tensor

from solverbench.benchmark.features import reference_of
from solverbench.benchmark.metrics.balls import hits
from solverbench.benchmark.metrics.base import Metric, standard_error
from solverbench.benchmark.metrics.frechet import FD, FDTeacher, FDTexture
from solverbench.benchmark.metrics.incidence import (
    coverage_influence,
    incidence,
    recall_influence,
)
from solverbench.benchmark.metrics.neighbours import Coverage, Density, Precision, Recall, covered
from solverbench.benchmark.metrics.paired import L1Teacher, PSNRTeacher, RMSETeacher
from solverbench.benchmark.metrics.repeats import half_split
from solverbench.images import Features, Reference

MEMORY = 2**28
K = 5
ALL = (FD, FDTeacher, FDTexture, Precision, Recall, Density, Coverage)
PAIRED = (RMSETeacher, L1Teacher, PSNRTeacher)


def rows(seed: int, num: int = 90, dim: int = 4) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def features(x: Tensor) -> Features:
    images = torch.tanh(x[:, :, None, None].expand(-1, -1, 2, 2))
    return Features(x, x[:, :3].contiguous(), images)


def known(x: Tensor) -> Reference:
    return reference_of(features(x), "drawn")


@pytest.mark.parametrize("kind", [*ALL, *PAIRED])
def test_measuring_gives_the_value_bit_for_bit_and_an_error(kind: type[Metric]) -> None:
    x, y = features(rows(0)), known(1.3 * rows(1))
    found = kind().measure(generated=x, reference=y)
    assert found.value == kind().compute(generated=x, reference=y)
    assert found.influence is not None
    assert found.se == standard_error(found.influence)
    assert found.se > 0
    assert found.flags == ()
    assert (found.num_generated, found.num_reference, len(found.influence)) == (90, 90, 90)


def test_the_record_of_fd_holds_the_half_split_estimate() -> None:
    x, y = rows(0), rows(1)
    found = FD().measure(generated=features(x), reference=known(y))
    expected = half_split(generated=x, reference=y).value
    assert found.facts["value_inf"] == pytest.approx(expected, rel=1e-9)  # other algorithm
    assert found.facts["value_inf_method"] == "half split"
    few = FD().measure(generated=features(rows(0, 9, 5)), reference=known(rows(1, 90, 5)))
    assert few.facts == {}  # halves of 4 rows in 5 dimensions


@pytest.mark.parametrize("kind", [FD, FDTeacher])
def test_too_few_rows_for_a_frechet_error_are_flagged(kind: type[Metric]) -> None:
    found = kind().measure(generated=features(rows(0, 4)), reference=known(rows(1, 4)))
    assert (found.se, found.influence) == (None, None)
    assert found.flags == ("rank_deficient", "no_se_few_rows")


def test_a_metric_that_gives_values_only_says_so() -> None:
    class Plain(FD):
        measure = Metric.measure

    found = Plain().measure(generated=features(rows(0)), reference=known(rows(1)))
    assert (found.se, found.flags) == (None, ("no_se",))
    assert found.value == FD().compute(generated=features(rows(0)), reference=known(rows(1)))


def without(x: Tensor, i: int) -> Tensor:
    return torch.cat([x[:i], x[i + 1 :]])


@pytest.mark.parametrize("seed", [0, 1])
def test_influences_on_recall_and_coverage_are_what_deleting_a_row_does(seed: int) -> None:
    """Counted anew for each row; duplicates among the generated rows."""
    x, y = rows(seed, 60, 3), rows(seed + 10, 50, 3)
    x[7] = x[3]
    num, all_rows = len(x), range(len(x))
    found = incidence(y, x, K, max_memory=MEMORY)
    recall = recall_influence(found, y, x, K, max_memory=MEMORY)
    counts = torch.tensor([covered(y, without(x, i)) for i in all_rows], dtype=torch.float64)
    expected = (covered(y, x) - counts) * (num - 1) / len(y)
    assert recall.tolist() == pytest.approx(expected.tolist(), abs=1e-12)  # small integers / 50

    def balls(some: Tensor) -> int:
        return hits(some, y, K, strict=True, max_memory=MEMORY).balls

    coverage = coverage_influence(incidence(x, y, K, max_memory=MEMORY))
    counts = torch.tensor([balls(without(x, i)) for i in all_rows], dtype=torch.float64)
    expected = (balls(x) - counts) * (num - 1) / len(y)
    assert coverage.tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_influences_do_not_depend_on_the_memory() -> None:
    x, y = rows(0, 200, 6), rows(1, 150, 6)
    a, b = (
        recall_influence(incidence(y, x, K, max_memory=m), y, x, K, max_memory=m)
        for m in (2**30, 2**20)
    )
    assert torch.equal(a, b)


def test_row_means_of_precision_and_density_are_their_values() -> None:
    x, y = features(rows(0)), known(1.3 * rows(1))
    for kind in (Precision, Density):
        found = kind().measure(generated=x, reference=y)
        assert found.influence is not None
        assert float(found.influence.mean()) == pytest.approx(found.value, rel=1e-12)


def test_of_unequal_sets_the_first_rows_count() -> None:
    found = Recall().measure(generated=features(rows(0, 120)), reference=known(rows(1)))
    assert found.influence is not None
    assert (found.num_generated, len(found.influence)) == (90, 90)


def spread(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).std())


def test_the_error_of_the_distance_to_the_teacher_moves_both_sides() -> None:
    """Student and teacher share their noise: a teacher held fixed would give 0.016, not 0.003."""
    values, errors = [], []
    rng = torch.Generator().manual_seed(0)
    for _ in range(120):
        teacher = torch.randn(800, 8, generator=rng)
        student = 0.95 * teacher + 0.2 * torch.randn(800, 8, generator=rng)
        found = FDTeacher().measure(generated=features(student), reference=known(teacher))
        assert found.se is not None
        values.append(found.value)
        errors.append(found.se)
    # 120 runs give a deviation within 1 / sqrt(240) = 6.5 %; allowed are 3 of these
    assert sum(errors) / 120 == pytest.approx(spread(values), rel=0.2)
    held = FD().measure(generated=features(student), reference=known(teacher))
    assert held.se is not None
    assert held.se > 2 * spread(values)


def nearly_dead(noise: Tensor, scale: float) -> Features:
    """Eight units that vary and two that are active on one image of 500, or on none."""
    return features(torch.cat([noise[:, :8], scale * torch.relu(noise[:, 8:] - 2.9)], dim=1))


def test_units_that_are_nearly_dead_take_nothing_from_the_error_of_fd_teacher() -> None:
    """Where they are dead on one side, the error is that of the other directions."""
    values, errors, singular = [], [], []
    rng = torch.Generator().manual_seed(0)
    for _ in range(150):
        noise = torch.randn(500, 10, generator=rng)
        moved = 0.95 * noise + 0.2 * torch.randn(500, 10, generator=rng)
        teacher = reference_of(nearly_dead(noise, 0.05), "drawn")
        found = FDTeacher().measure(generated=nearly_dead(moved, 0.05), reference=teacher)
        assert found.se is not None
        values.append(found.value)
        errors.append(found.se)
        singular.append("rank_deficient" in found.flags)
    assert 20 < sum(singular) < 130
    cut = [se for se, flagged in zip(errors, singular, strict=True) if flagged]
    for some in (errors, cut):
        assert sum(some) / len(some) == pytest.approx(spread(values), rel=0.15)  # 1.08 in 400 runs


@pytest.mark.parametrize("kind", [FD, FDTeacher])
def test_a_unit_that_one_side_lacks_and_the_other_needs_leaves_no_error(kind: type[Metric]) -> None:
    x, y = torch.zeros(200, 5), 1.1 * rows(1, 200, 5)
    x[:, :4] = rows(0, 200)
    found = kind().measure(generated=features(x), reference=known(y))
    assert (found.se, found.flags) == (None, ("rank_deficient", "no_se_cut"))


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [(Precision, 0.8, 1.25), (Density, 0.8, 1.25), (Recall, 0.9, 2.0), (Coverage, 0.9, 2.6)],
)
def test_errors_of_neighbour_metrics_are_right_or_rather_too_wide(
    kind: type[Metric], least: float, most: float
) -> None:
    """Against the deviation of 60 runs with one reference, which itself is within 10 %."""
    rng = torch.Generator().manual_seed(0)
    reference, values, errors = known(torch.randn(400, 8, generator=rng)), [], []
    for _ in range(60):
        x = features(0.9 * torch.randn(400, 8, generator=rng) + 0.1)
        found = kind().measure(generated=x, reference=reference)
        assert found.se is not None
        values.append(found.value)
        errors.append(found.se)
    ratio = sum(errors) / len(errors) / spread(values)
    assert least < ratio < most
    assert math.isfinite(ratio)
