"""What may be called better: errors, pairs, training seeds, and never a bold value inside noise."""

import csv
import io
import math
from collections.abc import Callable

import numpy as np
import pytest

from solverbench.benchmark.results import Measurement, Result
from solverbench.benchmark.store import Influence, Influences
from solverbench.leaderboards.differences import (
    STUDENT,
    Estimate,
    estimate,
    gap,
    no_influences,
    ranks,
    student,
)
from solverbench.leaderboards.render import render
from solverbench.leaderboards.tables import build

Make = Callable[..., Result]
MADE = Measurement(
    extractor="cifar16",
    extractor_sha256="0123456789abcdef",
    resize="none",
    precision="float32",
    batch=64,
    quantisation="edm",
    image_size=(16, 16),
    reference="10,000 images",
    seconds=1.0,
)
IMAGES = 400


def sure(result: Result, **errors: float) -> Result:
    """The record, had its errors been measured."""
    facts = {
        name: fact.model_copy(
            update={
                "num_generated": IMAGES,
                "num_reference": IMAGES,
                "dim": 64,
                "se_method": "delta method, reference fixed",
            }
        )
        for name, fact in result.metric_facts.items()
    }
    return result.model_copy(update={"errors": errors, "measurement": MADE, "metric_facts": facts})


def held(pairs: list[tuple[Result, Influence]]) -> Influences:
    """Influences of records at hand, for any metric."""
    rows = {result.spec.key(): row for result, row in pairs}
    return lambda result, metric: rows.get(result.spec.key())


def noise(seed: int, scale: float) -> Influence:
    """Influences (400,) whose standard error is ``scale``."""
    row = np.random.default_rng(seed).standard_normal(IMAGES)
    return row / row.std(ddof=1) * scale * math.sqrt(IMAGES)


def marks(results: list[Result], influences: Influences = no_influences) -> list[int]:
    return [row.cells[4].rank for row in build(results, "fd", (), influences).rows]


def test_two_methods_that_cannot_be_told_apart_are_never_bold(make: Make) -> None:
    a = sure(make("ddim", 4, {"fd": 1.00}), fd=0.10)
    b = sure(make("unipc-3", 4, {"fd": 1.20}), fd=0.10)  # 0.2 apart, 1.96 errors are 0.277
    c = sure(make("gs", 4, {"fd": 9.00}), fd=0.10)
    assert marks([a, b, c]) == [2, 2, 0]
    text = render([a, b, c], "md")
    assert "**" not in text
    assert "| DDIM | <ins>1.00 ± 0.10</ins> |" in text
    assert "| UniPC (3M) | <ins>1.20 ± 0.10</ins> |" in text
    assert "| GS | 9.00 ± 0.10 |" in text


def test_pairing_separates_what_two_errors_would_not(make: Make) -> None:
    a = sure(make("ddim", 4, {"fd": 1.00}), fd=0.10)
    b = sure(make("unipc-3", 4, {"fd": 1.20}), fd=0.10)
    shared = noise(0, 0.10)
    near = held([(a, shared), (b, shared + noise(1, 0.01))])
    far = held([(a, shared), (b, noise(2, 0.10))])
    assert marks([a, b]) == [2, 2]
    assert marks([a, b], near) == [1, 2]
    assert marks([a, b], far) == [2, 2]
    assert "| DDIM | **1.00 ± 0.10** |" in render([a, b], "md", None, near)


def test_a_difference_has_the_paired_error_or_both_in_squares(make: Make) -> None:
    a = sure(make("ddim", 4, {"fd": 1.0}), fd=0.3)
    b = sure(make("unipc-3", 4, {"fd": 2.0}), fd=0.4)
    shared, own = noise(0, 0.3), noise(1, 0.05)
    influences = held([(a, shared), (b, shared + own)])
    one, other = (estimate([r], "fd", influences) for r in (a, b))
    assert one is not None
    assert other is not None
    paired = gap(one, other)
    assert (paired.paired, paired.difference) == (True, -1.0)
    assert paired.se == pytest.approx(0.05, rel=1e-9)  # float64 rounding
    one, other = (estimate([r], "fd", no_influences) for r in (a, b))
    assert one is not None
    assert other is not None
    plain = gap(one, other)
    assert not plain.paired
    assert plain.se == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("what", ["weights_sha256", "reference_sha256"])
def test_rows_of_other_weights_or_another_reference_are_not_paired(make: Make, what: str) -> None:
    a = sure(make("ddim", 4, {"fd": 1.00}), fd=0.10)
    b = sure(make("unipc-3", 4, {"fd": 1.20}), fd=0.10)
    made = b.provenance.model_copy(update={what: "b" * 64})
    b = b.model_copy(update={"provenance": made})
    shared = noise(0, 0.10)
    assert marks([a, b], held([(a, shared), (b, shared + noise(1, 0.01))])) == [2, 2]


def test_a_missing_file_of_influences_leaves_the_unpaired_test(make: Make) -> None:
    a = sure(make("ddim", 4, {"fd": 1.00}), fd=0.10)
    b = sure(make("unipc-3", 4, {"fd": 1.20}), fd=0.10)
    assert marks([a, b], held([(a, noise(0, 0.10))])) == [2, 2]
    far = b.model_copy(update={"metrics": {"fd": 1.3}})
    assert marks([a, far], held([(a, noise(0, 0.10))])) == [1, 2]


def test_training_seeds_of_older_records_are_tested_by_their_spread(make: Make) -> None:
    """Deviation 0.2 over three seeds: 0.115 for the mean, times 4.303 of two degrees is 0.497."""
    seeds = [make("gs", 4, {"fd": fd}, seed=i) for i, fd in enumerate((0.8, 1.0, 1.2))]
    near, far = (make("ddim", 4, {"fd": fd}) for fd in (1.49, 1.51))
    assert marks([near, *seeds]) == [2, 2]
    assert marks([far, *seeds]) == [2, 1]
    one, two = (estimate(found, "fd", no_influences) for found in (seeds, [near]))
    assert one is not None
    assert two is not None
    assert gap(one, two).se == pytest.approx(0.2 / math.sqrt(3), rel=1e-12)
    text = render([far, *seeds], "md")
    assert "rows are tested by their training seeds alone." in text
    assert "This leaves out that other images would give other values" in text


def test_training_seeds_add_their_spread_to_the_error_over_images(make: Make) -> None:
    """0.01 / 3 over training seeds with Student's quantile, 0.04 over images with 1.96."""
    seeds = [
        sure(make("gs", 4, {"fd": fd}, seed=i), fd=0.1) for i, fd in enumerate((0.4, 0.5, 0.6))
    ]
    other = sure(make("ddim", 4, {"fd": 2.0}), fd=math.sqrt(0.03))
    one, two = (estimate(found, "fd", no_influences) for found in (seeds, [other]))
    assert one is not None
    assert two is not None
    found, part = gap(one, two), 0.01 / 3
    assert found.se == pytest.approx(math.sqrt(0.04 + part), rel=1e-12)
    half = math.sqrt(4.3027**2 * part + 1.96**2 * 0.04)
    assert found.level * found.se == pytest.approx(half, rel=1e-12)


def test_quantiles_of_student_are_those_of_its_density() -> None:
    """Integrated numerically after t = sqrt(n) tan(x)."""
    for n, quantile in enumerate(STUDENT, 1):
        x = np.linspace(0, math.atan(quantile / math.sqrt(n)), 20001)
        scale = math.gamma((n + 1) / 2) / (math.sqrt(math.pi) * math.gamma(n / 2))
        share = 0.5 + scale * float(np.trapezoid(np.cos(x) ** (n - 1), x))
        assert share == pytest.approx(0.975, abs=5e-6)  # four decimals of the quantile
        assert student(n) == quantile
    assert STUDENT[1] < student(1.5) < STUDENT[0]
    assert student(60) == pytest.approx(2.0003, abs=1e-3)  # interpolated, from tables
    assert student(1e12) == pytest.approx(1.96)


@pytest.mark.parametrize("num", [2, 3])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("images", [0.0, 0.3])
def test_few_training_seeds_make_no_false_difference_too_often(
    num: int, both: bool, images: float
) -> None:
    """4000 pairs of equal methods; with 1.96 alone it would be 10 to 30 %."""
    rng = np.random.default_rng(0)

    def side(num: int) -> Estimate:
        values = rng.standard_normal(num) + images * rng.standard_normal()
        return Estimate(float(values.mean()), num, float(values.std(ddof=1)), images, None, 0, True)

    fixed = Estimate(0.0, 1, None, 0.0, None, 0, True)
    found = [gap(side(num), side(num) if both else fixed).significant for _ in range(4000)]
    assert np.mean(found) < 0.06  # 5 %, and 3 standard errors of 0.34 %


def test_a_row_without_an_error_is_never_told_apart_by_that_of_the_other(make: Make) -> None:
    a = sure(make("ddim", 4, {"fd": 1.0}), fd=0.1)
    b = sure(make("unipc-3", 4, {"fd": 9.0}))
    assert marks([a, b]) == [0, 0]
    assert marks([a, make("unipc-3", 4, {"fd": 9.0})]) == [0, 0]  # an older record
    far = sure(make("gs", 4, {"fd": 3.0}), fd=0.1)
    assert marks([a, far]) == [1, 2]
    assert marks([a, far, b]) == [0, 0, 0]


def test_training_spread_alone_never_stands_in_for_errors_over_images(make: Make) -> None:
    """Three seeds that agree, in records that could hold errors or beside one that does."""
    seeds = [make("gs", 4, {"fd": 1.0 + 0.001 * i}, seed=i) for i in range(3)]
    assert marks([make("ddim", 4, {"fd": 2.0}), *seeds]) == [2, 1]
    assert marks([sure(make("ddim", 4, {"fd": 2.0}), fd=0.1), *seeds]) == [0, 0]
    bare = [sure(r) for r in seeds]
    assert marks([make("ddim", 4, {"fd": 2.0}), *bare]) == [0, 0]


def test_only_the_best_is_marked_where_the_second_cannot_be_tested(make: Make) -> None:
    seeds = [make("gs", 4, {"fd": 1.0 + 0.001 * i}, seed=i) for i in range(3)]
    single = [make("ddim", 4, {"fd": 2.0}), make("unipc-3", 4, {"fd": 3.0})]
    assert marks([*single, *seeds]) == [0, 0, 1]
    assert marks([*single, *(r.model_copy(update={"metrics": {"fd": 9.0}}) for r in seeds)]) == [
        *(0, 0, 0)
    ]


def test_training_seeds_share_their_images_so_errors_do_not_shrink(make: Make) -> None:
    shared = noise(0, 0.1)
    seeds = [sure(make("gs", 4, {"fd": 1.0}, seed=i), fd=0.1) for i in range(3)]
    plain = estimate(seeds, "fd", no_influences)
    held_ = estimate(seeds, "fd", held([(r, shared) for r in seeds]))
    assert plain is not None
    assert held_ is not None
    assert (plain.se, plain.spread, plain.num) == (pytest.approx(0.1), 0.0, 3)
    assert held_.se == pytest.approx(0.1, rel=1e-9)


def test_the_second_is_underlined_with_all_that_cannot_be_told_from_it(make: Make) -> None:
    values = {"ddim": 1.0, "unipc-3": 2.0, "dpmpp-3m": 2.1, "gs": 5.0}
    group = [sure(make(solver, 4, {"fd": fd}), fd=0.1) for solver, fd in values.items()]
    found = {row.title: row.cells[4].rank for row in build(group, "fd").rows}
    assert found == {"DDIM": 1, "UniPC (3M)": 2, "DPM-Solver++ (3M)": 2, "GS": 0}


def test_single_seeds_without_any_error_are_not_marked(make: Make) -> None:
    group = [make("ddim", 4, {"fd": 2.0}), make("unipc-3", 4, {"fd": 1.0})]
    assert marks(group) == [0, 0]
    assert "No error was recorded, so nothing is marked" in render(group, "md")


def test_a_metric_without_an_error_marks_nothing(make: Make) -> None:
    """Records that could hold one: the difference may be noise, and nothing tells."""
    assert marks([sure(make("ddim", 4, {"fd": 2.0})), sure(make("gs", 4, {"fd": 1.0}))]) == [0, 0]


def test_higher_is_better_turns_the_order(make: Make) -> None:
    group = [sure(make("ddim", 4, {"recall": 0.2}), recall=0.01)]
    group.append(sure(make("gs", 4, {"recall": 0.9}), recall=0.01))
    assert [row.cells[4].rank for row in build(group, "recall").rows] == [2, 1]


def test_a_single_row_is_not_marked(make: Make) -> None:
    one = estimate([sure(make("ddim", 4, {"fd": 2.0}), fd=0.1)], "fd", no_influences)
    assert one is not None
    assert ranks({0: one}, False) == {}
    assert estimate([make("ddim", 4, reason="killed")], "fd", no_influences) is None


def test_notes_say_what_stands_behind_every_error(make: Make) -> None:
    a = sure(make("ddim", 4, {"fd": 1.00}), fd=0.10)
    b = sure(make("unipc-3", 4, {"fd": 1.20}), fd=0.10)
    text = render([a, b], "md")
    for part in (
        "- Extractor: cifar16 (weights 0123456789ab, resize none, float32, batches of 64), images "
        "of 16 x 16 pixels, 8 bits by the rule of EDM. Reference: 10,000 images.",
        "Behind ± in FD[cifar16]: standard error over images in every row.",
        "by more than 1.96 standard errors of the difference",
        "Error of FD[cifar16]: delta method, reference fixed (M = 400, N = 400, D = 64).",
    ):
        assert part in text
    seeds = [sure(make("gs", 4, {"fd": 1.0 + i}, seed=i), fd=0.1) for i in range(2)]
    other = sure(make("dpmpp-3m", 4, {"fd": 3.0}), fd=0.1)
    mixed = render([a, other, make("unipc-3", 4, {"fd": 3.0}), *seeds], "md")
    assert (
        "- Behind ± in FD[cifar16]: nothing in UniPC (3M); sample standard deviation over "
        "training seeds in GS; standard error over images in every other row.\n"
    ) in mixed
    assert "sd^2 / n of each row is added" in mixed
    assert "No error over images was recorded for 1 of 5 records" in mixed


def test_the_note_tells_cells_of_one_row_apart(make: Make) -> None:
    seeds = [sure(make("gs", 4, {"fd": 1.0 + i}, seed=i), fd=0.1) for i in range(2)]
    alone = sure(make("gs", 6, {"fd": 1.0}), fd=0.1)
    assert (
        "Behind ± in FD[cifar16]: sample standard deviation over training seeds in GS (NFE 4); "
        "standard error over images in GS (NFE 6), every other row."
    ) in render([*seeds, alone, sure(make("ddim", 4, {"fd": 1.0}), fd=0.1)], "md")


def test_a_flag_names_the_rows_that_have_it(make: Make) -> None:
    a, b = (sure(make(s, n, {"fd": 1.0})) for s, n in (("ddim", 4), ("gs", 6)))
    facts = b.metric_facts["fd"].model_copy(update={"flags": ("no_se_cut",)})
    flagged = b.model_copy(update={"metric_facts": {"fd": facts}})
    assert "- FD[cifar16], GS (NFE 6): no error: in some directions" in render([a, flagged], "md")
    assert "- FD[cifar16]: no error: in some directions" in render([flagged], "md")


def test_the_csv_holds_errors_in_full(make: Make) -> None:
    text = render([sure(make("ddim", 4, {"fd": 1.0}), fd=1 / 3)], "csv")
    (line,) = csv.DictReader(io.StringIO(text))
    assert float(line["fd_se"]) == 1 / 3
