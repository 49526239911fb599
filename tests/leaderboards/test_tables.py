"""Tables hold what records hold, compare only what may be compared, and rank it."""

from collections.abc import Callable

import pytest

from solverbench.baselines.published import load_published
from solverbench.benchmark.results import Result
from solverbench.leaderboards.tables import Table, build, split

Make = Callable[..., Result]


def titles(table: Table) -> list[str]:
    return [row.title for row in table.rows]


def test_learned_rows_follow_training_free_ones_and_the_teacher_is_last(
    group: list[Result],
) -> None:
    table = build(group, "fd")
    assert titles(table) == ["DDIM", "UniPC (3M)", "GS", "Teacher (UniPC (3M), 20 NFE)"]
    assert table.nfes == (4, 6)
    assert table.rows[-1].is_teacher
    assert table.rows[-1].cells[20].mean == 6.15


def test_seeds_are_averaged_with_their_sample_deviation(group: list[Result]) -> None:
    cell = build(group, "fd").rows[2].cells[4]
    assert cell.values == (7.0, 7.1)
    assert cell.mean == pytest.approx(7.05, abs=1e-12)  # rounding of a sum of two
    assert cell.std == pytest.approx(0.1 / 2**0.5, abs=1e-12)  # by hand; rounding alone


def test_best_and_second_are_ranked_without_the_teacher(group: list[Result]) -> None:
    table = build(group, "fd")
    assert [row.cells[4].rank for row in table.students] == [0, 2, 1]
    assert [row.cells[6].rank for row in table.students] == [2, 1, 0]
    assert [cell.rank for cell in table.rows[-1].cells.values()] == [0]


def test_more_is_better_where_the_metric_says_so(make: Make) -> None:
    table = build([make("ddim", 4, {"recall": 0.2}), make("gs", 4, {"recall": 0.9})], "recall")
    assert [row.cells[4].rank for row in table.rows] == [2, 1]


def test_a_failure_is_a_cell_with_its_reason(group: list[Result]) -> None:
    cell = build(group, "fd").rows[2].cells[6]
    assert (cell.status, cell.mean) == ("failed", None)
    assert cell.faults == ("failed (seed 0): loss is not finite | at iteration 12",)


def test_a_failed_seed_beside_a_good_one_stays_visible(make: Make) -> None:
    cell = (
        build([make("gs", 4, {"fd": 7.0}), make("gs", 4, seed=1, reason="killed")], "fd")
        .rows[0]
        .cells[4]
    )
    assert (cell.values, cell.status) == ((7.0,), "ok")
    assert cell.faults == ("failed (seed 1): killed",)


def test_a_missing_metric_is_not_a_number_and_not_a_failure(make: Make) -> None:
    table = build([make("ddim", 4, {"fd": 1.0}), make("gs", 4, {})], "fd")
    assert table.rows[1].cells[4].status == "n/a"


def test_variants_of_a_solver_say_how_they_differ(make: Make) -> None:
    results = [
        make("unipc-3", 4, {"fd": 1.0}, options={"variant": "bh1", "schedule": "edm"}),
        make("unipc-3", 4, {"fd": 2.0}, options={"variant": "bh2", "schedule": "edm"}),
        make("gs", 4, {"fd": 2.0}, iterations=20),
        make("gs", 4, {"fd": 2.0}, iterations=40),
    ]
    assert titles(build(results, "fd")) == [
        "UniPC (3M) [variant=bh1]",
        "UniPC (3M) [variant=bh2]",
        "GS [fit.iterations=20]",
        "GS [fit.iterations=40]",
    ]


def test_an_option_left_out_is_named_from_what_the_record_used(make: Make) -> None:
    plain = make("unipc-3", 4, {"fd": 1.0})
    plain = plain.model_copy(update={"conventions": {"variant": "bh1"}})
    other = make("unipc-3", 4, {"fd": 2.0}, options={"variant": "bh2"})
    assert set(titles(build([plain, other], "fd"))) == {
        "UniPC (3M) [variant=bh1]",
        "UniPC (3M) [variant=bh2]",
    }


def test_the_order_of_options_makes_no_second_row(make: Make) -> None:
    one = make("unipc-3", 4, {"fd": 1.0}, options={"a": 1, "b": 2})
    two = make("unipc-3", 6, {"fd": 1.0}, options={"b": 2, "a": 1})
    assert titles(build([one, two], "fd")) == ["UniPC (3M)"]


@pytest.mark.parametrize("other", [{"backbone": "digits"}, {"num_images": 500}, {"version": 2}])
def test_what_was_measured_otherwise_never_shares_a_table(
    make: Make, other: dict[str, int]
) -> None:
    results = [make("ddim", 4, {"fd": 1.0}), make("ddim", 4, {"fd": 2.0}, **other)]
    assert [len(found) for found in split(results)] == [1, 1]
    with pytest.raises(ValueError, match="split"):
        build(results, "fd")


def test_of_two_records_of_one_cell_the_newer_is_kept(make: Make) -> None:
    old = make("ddim", 4, {"fd": 1.0}, created="2026-11-19T10:00:00Z")
    new = make("ddim", 4, {"fd": 2.0})
    assert split([new, old]) == [(new,)]


def test_a_published_value_stands_beside_the_reproduced_one(make: Make) -> None:
    results = [
        make("gs", 4, {"fid": 4.5}, backbone="edm-cifar10"),
        make("unipc-3", 4, {"fid": 44.0}, backbone="edm-cifar10", options={"variant": "bh1"}),
        make("unipc-3", 4, {"fid": 60.0}, backbone="edm-cifar10", options={"variant": "bh2"}),
        make("unipc-3", 5, {"fid": 30.0}, backbone="edm-cifar10", options={"variant": "bh1"}),
        make("teacher", 20, {"fid": 2.1}, backbone="edm-cifar10"),
    ]
    table = build(results, "fid", load_published())
    papers = {
        (row.title, nfe): cell.published.value
        for row in table.rows
        for nfe, cell in row.cells.items()
        if cell.published
    }
    assert papers == {
        ("UniPC (3M) [variant=bh1]", 4): 43.92,  # the paper's variant; bh2 is another method
        ("GS", 4): 4.41,
        ("Teacher (UniPC (3M), 20 NFE)", 20): 2.03,
    }
    assert table.has_published == {4}


def test_fd_is_never_set_beside_a_published_fid(make: Make) -> None:
    table = build([make("gs", 4, {"fd": 4.5}, backbone="edm-cifar10")], "fd", load_published())
    assert table.rows[0].cells[4].published is None
