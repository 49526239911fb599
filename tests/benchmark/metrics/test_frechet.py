import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import solverbench
from solverbench.benchmark import metrics as m
from solverbench.benchmark.metrics.frechet import from_moments, from_rows
from solverbench.images import moments

GOLDENS = Path(solverbench.__file__).parent / "goldens" / "metrics"
SETS = sorted(p.stem for p in GOLDENS.glob("*.npz") if "real" in np.load(p).files)
WITH_SE = ["gauss_unequal", "relu_equal", "same_distribution"]
SEEDS = st.integers(0, 2**32 - 1)


def rows(seed: int, num: int = 60, dim: int = 5) -> Tensor:
    """Correlated rows, float64."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=rng, dtype=torch.float64)
    return torch.randn(num, dim, generator=rng, dtype=torch.float64) @ mix + 3


def value(x: Tensor, y: Tensor) -> float:
    return m.frechet_distance(generated=x, reference=y).value


def rotation(seed: int, dim: int = 5) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=rng, dtype=torch.float64)).Q


def test_all_nine_golden_sets_are_there() -> None:
    assert len(SETS) == 9


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("sides", ["rows", "arrays", "moments", "statistics", "mixed"])
def test_every_golden_distance_is_met_whatever_the_sides_are_given_as(golden, name, sides) -> None:
    generated, reference, values = golden(name)
    give = {
        "rows": lambda x: x,
        "arrays": lambda x: x.numpy(),
        "moments": moments,
        "statistics": lambda x: m.Statistics().update(x),
        "mixed": lambda x: x if x is generated else moments(x),
    }[sides]
    found = m.frechet_distance(generated=give(generated), reference=give(reference))
    traces = sum(float(moments(x).sigma.trace()) for x in (generated, reference))
    within = 1e-9 * (1 + traces)  # the target of the goldens' README
    for key in {"fd.exact", "fd.exact_mp"} & set(values):
        assert found.value == pytest.approx(values[key], rel=0, abs=within)
    assert found.value == pytest.approx(values["fd.edm"], rel=0, abs=1e-4)  # its own error
    assert found.value == pytest.approx(values["fd.torch_fidelity.f64"], rel=0, abs=1e-4)
    assert (found.num_generated, found.dim) == tuple(generated.shape)


@pytest.mark.parametrize("name", WITH_SE)
def test_every_golden_error_is_met_and_lies_near_the_jackknife(golden, name) -> None:
    generated, reference, values = golden(name)
    found = m.frechet_distance(generated=generated, reference=reference)
    assert found.se == pytest.approx(values["fd.delta_se"], rel=1e-6)  # the README's tolerance
    assert found.se == pytest.approx(values["fd.jackknife_se"], rel=0.1)  # as the README says
    from_file = m.frechet_distance(generated=generated, reference=moments(reference))
    assert from_file.se == pytest.approx(found.se, rel=1e-9)  # float64 rounding
    assert from_file.flags == found.flags == ()


@pytest.mark.parametrize(
    ("num", "others", "flags"),
    [
        (5, 60, ("rank_deficient", "no_se_few_rows")),
        (60, 60, ()),
        (60, 4, ("rank_deficient",)),
    ],
)
def test_flags_say_what_is_singular_and_why_there_is_no_error(num, others, flags) -> None:
    found = m.frechet_distance(generated=rows(0, num), reference=rows(1, others))
    assert found.flags == flags
    assert (found.se is None) == any(f.startswith("no_se") for f in flags)
    assert (found.influence is None) == (found.se is None)


def test_repeated_rows_and_statistics_have_no_error_and_say_so() -> None:
    repeated = rows(0, 4).repeat(20, 1)
    found = m.frechet_distance(generated=repeated, reference=rows(1))
    assert found.flags == ("rank_deficient", "no_se_cut")
    assert found.facts["algorithm"] == "B"
    assert m.frechet_distance(generated=moments(rows(0)), reference=rows(1)).flags == (
        "no_se_statistics",
    )


def test_the_algorithm_follows_from_rank_and_rounding() -> None:
    def letter(x: Tensor, y: Tensor) -> object:
        return m.frechet_distance(generated=x, reference=y).facts["algorithm"]

    assert letter(rows(0, 4), rows(1)) == letter(rows(0), rows(1, 5)) == "A"
    assert letter(rows(0), rows(1)) == "C"
    steep = rows(0) * torch.logspace(0, -6, 5, dtype=torch.float64)  # condition 1e12, uncut
    assert letter(steep, steep + rows(1) * 1e-7) == "B"


@pytest.mark.parametrize("decades", [2, 3, 4, 5, 6, 7])
def test_every_algorithm_is_exact_for_any_condition(decades: int) -> None:
    """Commuting covariances have a closed form."""
    spread = torch.logspace(0, -decades, 20, dtype=torch.float64)
    turn = rotation(3, 20)
    a, b = spread, spread.flip(0)
    x = m.Moments(torch.zeros(20, dtype=torch.float64), turn @ a.diag() @ turn.T, 100)
    y = m.Moments(torch.zeros(20, dtype=torch.float64), turn @ b.diag() @ turn.T, 100)
    found = m.frechet_distance(generated=x, reference=y).value
    expected = float((a.sqrt() - b.sqrt()).square().sum())
    assert found == pytest.approx(expected, rel=0, abs=1e-9 * float(1 + a.sum() + b.sum()))


def test_rank_deficient_sets_are_exact_where_the_matrix_root_is_not() -> None:
    """Rows with 8 degrees of freedom in 48 dimensions have the distance of the 8."""
    x, y = rows(0, 200, 8), rows(1, 200, 8)
    embed = rotation(2, 48)[:8]
    found = m.frechet_distance(generated=x @ embed, reference=y @ embed)
    assert found.value == pytest.approx(value(x, y), rel=1e-11)  # rounding; sqrtm is off by 1e-6
    assert found.facts["algorithm"] == "B"


@given(SEEDS)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_distance_keeps_what_it_must_keep(seed: int) -> None:
    x, y = rows(seed), rows(seed + 1, 70)
    base = m.frechet_distance(generated=x, reference=y)
    within = {"rel": 1e-9, "abs": 1e-9}  # as the specification asks
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    turn = rotation(seed)
    for same in (
        m.frechet_distance(generated=x[order], reference=y.flip(0)),
        m.frechet_distance(generated=x + 100, reference=y + 100),
        m.frechet_distance(generated=x @ turn, reference=y @ turn),
    ):
        assert same.value == pytest.approx(base.value, **within)
        assert same.se == pytest.approx(base.se, rel=1e-7)  # offsets of 100 cost two digits
    assert value(y, x) == pytest.approx(base.value, **within)
    tripled = m.frechet_distance(generated=3 * x, reference=3 * y)
    assert tripled.value == pytest.approx(9 * base.value, **within)
    assert tripled.se == pytest.approx(9 * base.se, rel=1e-9)  # type: ignore[operator]


@given(SEEDS)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_distance_of_a_set_to_itself_is_zero_and_to_a_moved_copy_the_squared_move(seed) -> None:
    x = rows(seed)
    traces = 2 * float(moments(x).sigma.trace())
    assert 0 <= value(x, x) <= 1e-12 * (1 + traces)
    assert 0 <= value(x[:4], x[:4]) <= 1e-12 * (1 + traces)
    assert value(x + 0.5, x) == pytest.approx(5 * 0.25, rel=0, abs=1e-11 * (1 + traces))


def test_a_set_without_variance_has_the_distance_of_its_mean_and_the_other_trace() -> None:
    x, y = torch.ones(30, 5), rows(1)
    far = (moments(y).mu - 1).square().sum() + moments(y).sigma.trace()
    assert value(x, y) == pytest.approx(float(far), rel=1e-12)  # float64 rounding
    assert m.frechet_distance(generated=moments(x), reference=y).value == pytest.approx(float(far))


def test_the_three_ways_agree_on_sets_of_full_rank() -> None:
    x, y = rows(0, 300, 20), rows(1, 400, 20)
    values = [value(x, y), from_moments(moments(x), moments(y)), from_rows(x, y)]
    assert max(values) - min(values) <= 1e-9 * max(values)  # the quick path's own limit


def simulated(num: int, seed: int, dim: int = 16) -> Tensor:
    """Rows of a Gaussian that is not the reference's."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.7, 1.4, dim, dtype=torch.float64)
    return torch.randn(num, dim, generator=rng, dtype=torch.float64) * scale + 0.1


def test_the_error_is_that_of_a_simulation() -> None:
    """200 replicates: their own standard deviation is known to 5 %; asked for are 15 %."""
    reference = moments(simulated(8000, 999) * 0.9)
    found = [
        m.frechet_distance(generated=simulated(2000, seed), reference=reference)
        for seed in range(200)
    ]
    true = float(np.std([f.value for f in found], ddof=1))
    errors = [f.se for f in found]
    assert float(np.mean(errors)) == pytest.approx(true, rel=0.15)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("num", "dim", "repeats"), [(2000, 16, 1000), (5000, 64, 500)])
def test_an_interval_of_196_errors_covers_the_expected_distance(
    num: int, dim: int, repeats: int
) -> None:
    """Runs against a fixed reference; the figures are in docs/metrics.md."""
    reference = moments(simulated(4 * num, 10**6, dim) * 0.9)
    found = [
        m.frechet_distance(generated=simulated(num, seed, dim), reference=reference)
        for seed in range(repeats)
    ]
    assert 0.93 <= coverage([f.value for f in found], [f.se for f in found]) <= 0.97


@pytest.mark.slow
def test_an_interval_of_196_paired_errors_covers_the_expected_difference() -> None:
    """1000 pairs of runs from the same noise; the figure is in docs/metrics.md."""
    reference = moments(simulated(8000, 10**6) * 0.9)
    found = []
    for seed in range(1000):
        x = simulated(2000, seed)
        bent = 1.02 * x + 0.01 * x.square()
        found.append(m.paired_frechet(generated_a=x, generated_b=bent, reference=reference))
    assert 0.93 <= coverage([f.difference for f in found], [f.se for f in found]) <= 0.97


@pytest.mark.slow
def test_a_half_split_interval_covers_the_true_distance() -> None:
    """400 runs against a known Gaussian; the figure is in docs/metrics.md."""
    scale = torch.linspace(0.7, 1.4, 16, dtype=torch.float64)
    reference = m.Moments(torch.zeros(16).double(), (0.9 * scale).square().diag(), 10**9)
    truth = float((0.1 * scale).square().sum() + 16 * 0.01)
    found = [
        m.half_split(generated=simulated(2000, seed), reference=reference) for seed in range(400)
    ]
    inside = [abs(f.value - truth) <= 1.96 * f.se for f in found]  # type: ignore[operator]
    assert 0.93 <= float(np.mean(inside)) <= 0.97


def coverage(values: list[float], errors: list[float | None]) -> float:
    """Share of runs whose interval holds the mean of all runs."""
    expected = float(np.mean(values))
    inside = [abs(v - expected) <= 1.96 * e for v, e in zip(values, errors, strict=True)]  # type: ignore[operator]
    return float(np.mean(inside))


def test_a_paired_difference_is_tighter_than_two_runs_and_right() -> None:
    """Two methods from the same noise, against a simulation of 200 replicates."""
    reference = moments(simulated(4000, 999) * 0.9)

    def pair(seed: int) -> m.Difference:
        x = simulated(500, seed)
        return m.paired_frechet(generated_a=x, generated_b=1.02 * x + 0.01, reference=reference)

    found = [pair(seed) for seed in range(200)]
    true = float(np.std([f.difference for f in found], ddof=1))
    assert float(np.mean([f.se for f in found])) == pytest.approx(true, rel=0.15)  # type: ignore[arg-type]
    first = found[0]
    apart = math.hypot(first.a.se, first.b.se)  # type: ignore[arg-type]
    assert first.se < apart / 3  # type: ignore[operator]
    assert first.difference == first.a.value - first.b.value
    assert first.significant


def test_a_method_is_not_better_than_itself_and_other_seeds_are_refused() -> None:
    x, y = rows(0), rows(1)
    same = m.paired_frechet(generated_a=x, generated_b=x, reference=y)
    assert (same.difference, same.se, same.num, same.significant) == (0.0, 0.0, 60, False)
    no_error = m.paired_frechet(generated_a=x[:5], generated_b=x[5:10], reference=y)
    assert no_error.se is None
    assert not no_error.significant
    assert "no_se_few_rows" in no_error.flags
    with pytest.raises(ValueError, match="must share a seed; got 60 and 59 rows"):
        m.paired_frechet(generated_a=x, generated_b=x[:59], reference=y)
    one, other = (m.frechet_distance(generated=z, reference=y) for z in (x, x[:50]))
    with pytest.raises(ValueError, match="equal seeds on both sides; got 60 and 50"):
        m.paired_difference(one, other)


def test_both_corrections_take_most_of_the_bias_away() -> None:
    """40 runs of 600 rows in 24 dimensions; the truth is the closed form of two Gaussians."""
    scale = torch.linspace(0.7, 1.4, 24, dtype=torch.float64)
    reference = m.Moments(torch.zeros(24, dtype=torch.float64), torch.eye(24).double(), 10**9)
    truth = float((scale - 1).square().sum() + 24 * 0.01)
    plain, halved, infinite = [], [], []
    for seed in range(40):
        x = simulated(600, seed, 24)
        half = m.half_split(generated=x, reference=reference)
        plain.append(half.facts["plain"])
        halved.append(half.value)
        line = m.frechet_infinity(generated=x, reference=reference, smallest=150)
        infinite.append(line.value)
        assert half.se is not None
        assert line.flags == ("no_se",)
    bias = float(np.mean(plain)) - truth
    scatter = float(np.std(plain)) / math.sqrt(40)
    assert bias > 10 * scatter
    assert abs(float(np.mean(halved)) - truth) < 0.15 * bias
    assert abs(float(np.mean(infinite)) - truth) < 0.25 * bias  # the weaker one, as expected
    assert float(np.std(halved)) < float(np.std(infinite))


def test_corrections_are_seeded_and_refuse_what_they_cannot_split() -> None:
    x, y = rows(0, 40), rows(1)
    for correct in (
        lambda seed: m.half_split(generated=x, reference=y, seed=seed).value,
        lambda seed: (
            m.frechet_infinity(generated=x, reference=y, smallest=10, sizes=5, seed=seed).value
        ),
    ):
        assert correct(0) == correct(0) != correct(1)
    assert m.half_split(generated=x[:8], reference=y).flags == ("rank_deficient",)
    with pytest.raises(ValueError, match="needs four rows and one split; got 3 and 3"):
        m.half_split(generated=x[:3], reference=y)
    with pytest.raises(ValueError, match="between 5000 and the number of rows, 40"):
        m.frechet_infinity(generated=x, reference=y)


def test_repeats_measure_disjoint_blocks_of_seeds() -> None:
    x, y = rows(0, 61), rows(1)
    found = m.over_seed_blocks(m.frechet_distance, generated=x, reference=y)
    values = [value(part, y) for part in (x[:20], x[20:40], x[40:60])]
    assert [block.value for block in found.blocks] == values
    assert found.mean == pytest.approx(np.mean(values))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert found.se == pytest.approx(found.sd / math.sqrt(3))
    assert (found.minimum, found.minimum_label) == (min(values), "min of 3")
    with pytest.raises(ValueError, match="at least 3 blocks of two rows; got 2 blocks of 30"):
        m.over_seed_blocks(m.frechet_distance, generated=x, reference=y, num_blocks=2)
    with pytest.raises(ValueError, match="got 0 blocks of 0"):
        m.over_seed_blocks(m.frechet_distance, generated=x, reference=y, num_blocks=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:1], r"M >= 2; got \(1, 5\)"),
        (lambda x: x[:, :4], "generated features have 4 dimensions, reference features 5"),
        (lambda x: x.clone().index_fill_(0, torch.tensor([3]), math.nan), "1 of 60 feature rows"),
        (lambda x: x.clone().index_fill_(1, torch.tensor([3]), math.inf), "60 of 60 feature rows"),
        (lambda x: x[0], r"features must be \(M, D\)"),
        (lambda x: m.Statistics().update(x[:1]), "at least two rows; got 1"),
        (lambda x: m.Moments(x[0] * math.nan, torch.eye(5), 9), "moments hold NaN or infinity"),
    ],
)
def test_unusable_sides_are_refused_in_one_line(spoil, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        m.frechet_distance(generated=spoil(rows(0)), reference=rows(1))
    assert "\n" not in str(caught.value)


def test_every_flag_is_explained() -> None:
    from solverbench.benchmark.metrics.base import FLAGS

    for x in (rows(0), rows(0, 4), rows(0, 3).repeat(9, 1), moments(rows(0))):
        assert set(m.frechet_distance(generated=x, reference=rows(1)).flags) <= set(FLAGS)


def test_features_that_vary_nowhere_take_nothing_from_the_error() -> None:
    rng = torch.Generator().manual_seed(3)
    x, y = torch.randn(400, 6, generator=rng), 1.2 * torch.randn(500, 6, generator=rng)
    still = m.frechet_distance(generated=x, reference=y)
    dead = [torch.cat([rows, torch.full((len(rows), 2), 0.5)], dim=1) for rows in (x, y)]
    found = m.frechet_distance(generated=dead[0], reference=dead[1])
    assert found.se == pytest.approx(still.se, rel=1e-9)  # the same sums in another order
    assert (found.flags, found.dim) == ((), 8)
    dead[0][:, 7] = 0.0  # a constant elsewhere: the distance grows by its square, the error stays
    moved = m.frechet_distance(generated=dead[0], reference=dead[1])
    assert moved.value == pytest.approx(still.value + 0.25, rel=1e-9)
    assert moved.se == pytest.approx(still.se, rel=1e-9)
    half = torch.cat([dead[1][:, :7], torch.randn(500, 1, generator=rng)], dim=1)
    assert "no_se_cut" in m.frechet_distance(generated=dead[0], reference=half).flags
