"""Tables hold what records hold, compare only what may be compared, and rank it."""

from collections.abc import Callable

import pytest

from solverbench.baselines.published import load_published
from solverbench.benchmark.results import Result
from solverbench.benchmark.spec import EvaluationSpec, Named
from solverbench.leaderboards.tables import Table, build, split
from solverbench.leaderboards.views import find, listed, show
from tests.leaderboards.conftest import exact

RECALL = EvaluationSpec(metrics=("recall",))

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
    table = build(group, "fd", (), exact)
    assert [row.cells[4].rank for row in table.students] == [0, 2, 1]
    assert [row.cells[6].rank for row in table.students] == [2, 1, 0]
    assert [cell.rank for cell in table.rows[-1].cells.values()] == [0]


def test_more_is_better_where_the_metric_says_so(make: Make) -> None:
    rows = [make("ddim", 4, {"recall": 0.2}), make("gs", 4, {"recall": 0.9})]
    assert [row.cells[4].rank for row in build(rows, "recall", (), exact).rows] == [2, 1]


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


def test_optimised_times_are_rows_of_their_own(make: Make) -> None:
    gits, far = Named(name="gits"), Named(name="gits", options={"gamma": 1.2})
    results = [
        make("unipc-3", 4, {"fd": 1.0}),
        make("unipc-3", 4, {"fd": 2.0}, schedule=gits),
        make("unipc-3", 6, {"fd": 2.0}, schedule=gits),
        make("unipc-3", 4, {"fd": 3.0}, schedule=far),
        make("unipc-3", 4, {"fd": 4.0}, schedule=Named(name="dmn")),
    ]
    used = {"schedule_optimiser": {"name": "gits", "gamma": 1.15}}
    results[1] = results[1].model_copy(update={"conventions": used})
    table = build(results, "fd")
    assert titles(table) == [
        "UniPC (3M)",
        "UniPC (3M) [DMN]",
        "UniPC (3M) [GITS] [optimiser.gamma=1.2]",
        "UniPC (3M) [GITS] [optimiser.gamma=1.15]",
    ]
    assert table.rows[3].cells[6].mean == 2.0


def test_best_ld3_takes_the_best_base_at_each_nfe_and_no_rank(make: Make) -> None:
    group = [
        make("ld3-dpmpp", 4, {"fd": 2.0}, seed=0),
        make("ld3-dpmpp", 4, {"fd": 2.02}, seed=1),
        make("ld3-dpmpp", 6, {"fd": 1.0}),
        make("ld3-ipndm", 4, {"fd": 3.0}),
        make("ld3-ipndm", 6, {"fd": 0.5}),
        make("ld3-ipndm", 8, reason="killed"),
        make("gs", 4, {"fd": 4.0}),
    ]
    (view,) = find(group)
    assert [view.members[i] for i in view.taken.values()] == ["LD3 (DPM++)", "LD3 (iPNDM)"]
    table = show(build(group, "fd", (), exact), [view], ())
    assert titles(table) == ["GS", "LD3 (DPM++)", "LD3 (iPNDM)", "Best LD3"]
    best = table.rows[3]
    assert best.is_view
    assert [cell.values for cell in best.cells.values()] == [(2.0, 2.02), (0.5,), ()]
    assert [cell.rank for cell in best.cells.values()] == [0, 0, 0]
    assert best.cells[8].status == "failed"
    assert best.cells[8].faults == ()  # the row that failed is in the table and says so
    assert [row.cells[4].rank for row in table.rows] == [0, 1, 2, 0]
    assert titles(build(group, "fd", (), exact)) == ["GS", "LD3 (DPM++)", "LD3 (iPNDM)"]


def with_fit(result: Result, **fit: float) -> Result:
    """The record, had it been trained otherwise."""
    assert result.spec.fit is not None
    spec = result.spec.model_copy(update={"fit": result.spec.fit.model_copy(update=fit)})
    return result.model_copy(update={"spec": spec})


def test_learning_rates_may_differ_within_best_ld3(make: Make) -> None:
    group = [
        make("ld3-dpmpp", 4, {"fd": 2.0}, options={"xi_lr": 0.3}),
        with_fit(make("ld3-ipndm", 4, {"fd": 3.0}, options={"order": 2}), lr=2e-3),
    ]
    (view,) = find(group)
    assert view.title == "Best LD3"
    assert sorted(view.members.values()) == ["LD3 (DPM++)", "LD3 (iPNDM)"]


def test_best_ld3_leaves_out_ablations_and_other_budgets(make: Make) -> None:
    group = [
        make("ld3-dpmpp", 4, {"fd": 3.0}),
        make("ld3-ipndm", 4, {"fd": 4.0}),
        make("ld3-dpmpp", 4, {"fd": 1.0}, options={"decoupled": False}),
        make("ld3-ipndm", 4, {"fd": 2.0}, iterations=40),
        with_fit(make("ld3-ipndm", 4, {"fd": 2.5}), train_size=100),
    ]
    (view,) = find(group)
    table = show(build(group, "fd"), [view], ())
    assert len(view.members) == 2
    assert {row.title: row.cells[4].mean for row in table.rows}["Best LD3"] == 3.0


def test_a_default_spelled_out_is_no_ablation(make: Make) -> None:
    plain = make("ld3-dpmpp", 4, {"fd": 3.0})
    plain = plain.model_copy(update={"conventions": {"decoupled": True}})
    assert len(find([plain, make("ld3-ipndm", 4, {"fd": 2.0}, options={"decoupled": True})])) == 1


def test_each_budget_has_a_best_ld3_of_its_own(make: Make) -> None:
    group = [
        make(solver, 4, {"fd": fd}, iterations=iterations)
        for solver, iterations, fd in [
            ("ld3-dpmpp", 20, 4.0),
            ("ld3-ipndm", 20, 3.0),
            ("ld3-dpmpp", 40, 1.0),
            ("ld3-ipndm", 40, 2.0),
        ]
    ]
    rows = show(build(group, "fd"), find(group), ()).rows
    assert {row.title: row.cells[4].mean for row in rows if row.is_view} == {
        "Best LD3 [fit.iterations=20]": 3.0,
        "Best LD3 [fit.iterations=40]": 1.0,
    }


def test_rows_of_one_base_are_no_choice_of_base(make: Make) -> None:
    rates = [make("ld3-dpmpp", 4, {"fd": r}, options={"xi_lr": r}) for r in (0.1, 0.3)]
    assert find(rates) == []


def test_a_hidden_grid_keeps_its_rank_and_its_view_shows_it(make: Make) -> None:
    group = [
        make("unipc-3", 4, {"fd": 3.0, "recall": 0.7}, options={"schedule": "logsnr"}),
        make("unipc-3", 4, {"fd": 1.0, "recall": 0.6}, options={"schedule": "edm"}),
        make("unipc-3", 4, {"fd": 4.0, "recall": 0.9}, options={"schedule": "time"}),
        make("gs", 4, {"fd": 2.0, "recall": 0.8}),
    ]
    views = find(group)
    fd, recall = (
        {
            row.title: row.cells[4].rank
            for row in show(build(group, name, (), exact), views, ()).rows
        }
        for name in ("fd", "recall")
    )
    assert fd == {
        "UniPC (3M) [schedule=logsnr]": 0,
        "UniPC (3M), best of 3 grids": 1,  # of the grid edm, which has no row here
        "GS": 2,
    }
    # best is the grid that FD did not take: nothing here may stand in its place
    assert [recall["UniPC (3M), best of 3 grids"], recall["GS"]] == [0, 2]


def test_two_hidden_grids_leave_the_rest_unmarked(make: Make) -> None:
    group = [
        make("unipc-3", 4, {"fd": fd}, options={"schedule": grid})
        for grid, fd in [("logsnr", 4.0), ("edm", 1.0), ("time", 2.0)]
    ]
    group.append(make("gs", 4, {"fd": 3.0}))
    table = show(build(group, "fd", (), exact), find(group), ())
    assert [row.cells[4].rank for row in table.rows] == [0, 1, 0]


def test_the_paper_stands_beside_best_ld3(make: Make) -> None:
    group = [
        make(solver, 4, {"fid": 9.0}, backbone="edm-cifar10")
        for solver in ("ld3-dpmpp", "ld3-ipndm")
    ]
    table = show(build(group, "fid", load_published("2")), find(group), load_published("2"))
    quoted = {row.title: c.published.value for row in table.rows if (c := row.cells[4]).published}
    assert quoted == {"Best LD3": 9.31}


def test_grids_of_other_variants_and_optimised_times_are_not_mixed(make: Make) -> None:
    group = [
        make("unipc-3", 4, {"fd": fd}, options={"schedule": grid, "variant": variant})
        for fd, grid, variant in [(4.0, "logsnr", "bh1"), (3.0, "edm", "bh1"), (1.0, "edm", "bh2")]
    ]
    group.append(make("unipc-3", 4, {"fd": 0.5}, schedule=Named(name="gits")))
    (view,) = find(group)
    assert view.title == "UniPC (3M) [variant=bh1], best of 2 grids"
    assert [row.title for row in listed(group)] == [
        "UniPC (3M) [schedule=edm, variant=bh2]",
        "UniPC (3M) [schedule=logsnr, variant=bh1]",
        "UniPC (3M) [GITS]",
    ]
    assert show(build(group, "fd"), [view], ()).rows[2].cells[4].mean == 3.0


def test_a_grid_left_out_is_known_from_what_the_record_used(make: Make) -> None:
    plain = make("unipc-3", 4, {"fd": 2.0})
    plain = plain.model_copy(update={"conventions": {"schedule": "logsnr"}})
    (view,) = find([plain, make("unipc-3", 4, {"fd": 1.0}, options={"schedule": "edm"})])
    assert sorted(view.members.values()) == ["edm", "logsnr"]


def test_one_grid_or_one_base_or_no_fd_makes_no_view(make: Make) -> None:
    assert find([make("unipc-3", 4, {"fd": 2.0}), make("ld3-dpmpp", 4, {"fd": 1.0})]) == []
    blind = [
        r.model_copy(update={"spec": r.spec.model_copy(update={"evaluation": RECALL})})
        for r in (make("ld3-dpmpp", 4, {"recall": 1.0}), make("ld3-ipndm", 4, {"recall": 1.0}))
    ]
    assert find(blind) == []


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
        make("unipc-3", 4, {"fid": 25.0}, backbone="edm-cifar10", schedule=Named(name="gits")),
        make("s4s-alt", 4, {"fid": 7.0}, backbone="edm-cifar10"),
        make("teacher", 20, {"fid": 2.1}, backbone="edm-cifar10"),
    ]
    table = build(results, "fid", load_published("2"))
    papers = {
        (row.title, nfe): cell.published.value
        for row in table.rows
        for nfe, cell in row.cells.items()
        if cell.published
    }
    assert papers == {
        ("UniPC (3M) [variant=bh1]", 4): 43.92,  # the paper's variant; bh2 is another method
        ("UniPC (3M) [GITS]", 4): 25.32,
        ("GS", 4): 4.41,
        ("S4S-Alt (re-implementation)", 4): 6.35,
        ("Teacher (UniPC (3M), 20 NFE)", 20): 2.03,
    }
    assert table.has_published == {4}


def test_fd_is_never_set_beside_a_published_fid(make: Make) -> None:
    table = build([make("gs", 4, {"fd": 4.5}, backbone="edm-cifar10")], "fd", load_published("2"))
    assert table.rows[0].cells[4].published is None
