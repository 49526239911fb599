"""The records that ship are readable, and the pages and the README say what they say."""

import re
from pathlib import Path
from statistics import fmean, stdev

import pytest

import solverbench
from solverbench.benchmark.results import Result
from solverbench.benchmark.spec import Value
from solverbench.benchmark.store import StoredInfluences, read_records
from solverbench.leaderboards.render import render

ROOM = Path(solverbench.__file__).parent / "leaderboards"
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def records() -> list[Result]:
    return read_records(ROOM / "records" / "cifar16")


def value(records: list[Result], solver: str, nfe: int, metric: str) -> float:
    (found,) = (r for r in records if (r.spec.solver.name, r.spec.nfe) == (solver, nfe))
    return found.metrics[metric]


@pytest.mark.parametrize(
    "page", sorted({path.name for path in (ROOM / "records").iterdir()} - {"community"})
)
def test_a_page_is_the_rendering_of_its_records_and_then_its_remarks(page: str) -> None:
    folder = ROOM / "records" / page
    text = render(read_records(folder), "md", None, StoredInfluences(folder))
    remarks = ROOM / "remarks" / f"{page}.md"
    text += f"\n{remarks.read_text()}" if remarks.exists() else ""
    assert (ROOM / "pages" / f"{page}.md").read_text() == text


def test_the_tables_of_the_readme_stand_on_the_page() -> None:
    tables = re.findall(r"^\| solver .*?\n\n", README.read_text(), re.S | re.M)
    assert len(tables) == 2
    page = (ROOM / "pages" / "cifar16.md").read_text()
    assert all(table in page for table in tables)


def test_every_cell_of_the_default_recipe_went_well(records: list[Result]) -> None:
    assert len(records) == 7 * 2 + 1
    assert {r.status for r in records} == {"ok"}
    assert {r.spec.evaluation.num_images for r in records} == {2000}


def test_gs_is_clearly_ahead_of_what_is_not_trained_at_four_evaluations(
    records: list[Result],
) -> None:
    """The margins that the default run must show: 0.7 in FD and 0.1 in FD to the teacher."""
    free = ("dpmpp-3m", "unipc-3", "ipndm-3")
    best = {n: min(value(records, s, n, "fd") for s in free) for n in (4, 6)}
    nearest = min(value(records, s, 4, "fd-teacher") for s in free)
    assert value(records, "gs", 4, "fd") <= 0.7 * best[4]
    assert value(records, "gs", 4, "fd-teacher") <= 0.1 * nearest
    assert best[4] > best[6]


@pytest.fixture(scope="module")
def digits() -> list[Result]:
    return read_records(ROOM / "records" / "full-digits")


def rows(
    records: list[Result], solver: str, nfe: int, metric: str, **options: Value
) -> list[float]:
    """Values over training seeds at the recipe's own budget."""
    found = [r for r in records if (r.spec.solver.name, r.spec.nfe) == (solver, nfe)]
    found = [r for r in found if r.spec.solver.options.items() >= options.items()]
    if not options:
        found = [r for r in found if not r.spec.solver.options or solver not in ("gs", "gas")]
    return [r.metrics[metric] for r in found if r.spec.fit and r.spec.fit.iterations == 600]


def test_every_method_ran_on_digits_with_three_seeds(digits: list[Result]) -> None:
    assert {r.status for r in digits} == {"ok"}
    learned = {r.spec.solver.name for r in digits if r.spec.fit}
    assert learned >= {"ld3-unipc", "ld3-dpmpp", "ld3-ipndm", "s4s", "s4s-pc", "s4s-alt"}
    assert learned >= {"gs", "gas", "gs-no-theory", "s4s-lms-gas", "s4s-pc-gas", "free-tableau"}
    assert {r.spec.schedule.name for r in digits if r.spec.schedule} == {"gits", "dmn"}
    assert {r.spec.seed for r in digits if r.spec.fit} == {0, 1, 2}


@pytest.mark.parametrize("solver", ["ld3-unipc", "ld3-dpmpp", "s4s", "gs", "free-tableau"])
def test_learned_solvers_are_ahead_at_four_evaluations_beyond_their_spread(
    digits: list[Result], solver: str
) -> None:
    """Of all solvers that are not trained, each on its reference grid."""
    free = [
        r.metrics["fd"]
        for r in digits
        if r.spec.nfe == 4 and not r.spec.fit and not r.spec.schedule
        if r.spec.solver.options.get("schedule", "logsnr") == "logsnr"
    ]
    assert len(free) >= 8
    values = rows(digits, solver, 4, "fd")
    assert len(values) == 3
    assert max(values) < min(free)
    assert fmean(values) + stdev(values) < min(free)


@pytest.mark.parametrize("metric", ["fd-teacher", "rmse-teacher"])
def test_gs_is_nearer_to_the_teacher_than_ld3_and_s4s_with_equal_pairs_and_iterations(
    digits: list[Result], metric: str
) -> None:
    """At NFE 3 and 4; the page says what happens at 5."""
    for nfe in (3, 4):
        gs = fmean(rows(digits, "gs", nfe, metric))
        for other in ("ld3-unipc", "ld3-dpmpp", "ld3-ipndm", "s4s", "s4s-pc", "s4s-alt"):
            assert gs < fmean(rows(digits, other, nfe, metric))


def test_gas_is_ahead_of_gs_trained_for_as_long_at_four_evaluations(digits: list[Result]) -> None:
    """For each training seed; the page says by how much and where it is not."""

    def by_seed(solver: str, iterations: int) -> dict[int, float]:
        return {
            r.spec.seed: r.metrics["fd"]
            for r in digits
            if r.spec.solver.name == solver and r.spec.nfe == 4 and r.spec.fit
            if r.spec.fit.iterations == iterations and "loss" not in r.spec.solver.options
        }

    gas, gs = by_seed("gas", 600), by_seed("gs", 800)
    assert gas.keys() == gs.keys() == {0, 1, 2}
    assert all(gas[seed] < gs[seed] for seed in gs)
