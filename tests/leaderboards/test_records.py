"""The records that ship are readable, and the pages and the README say what they say."""

import re
from pathlib import Path

import pytest

import solverbench
from solverbench.benchmark.results import Result
from solverbench.benchmark.store import read_records
from solverbench.leaderboards.render import render

ROOM = Path(solverbench.__file__).parent / "leaderboards"
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def records() -> list[Result]:
    return read_records(ROOM / "records" / "cifar16")


def value(records: list[Result], solver: str, nfe: int, metric: str) -> float:
    (found,) = (r for r in records if (r.spec.solver.name, r.spec.nfe) == (solver, nfe))
    return found.metrics[metric]


@pytest.mark.parametrize("page", sorted(path.stem for path in (ROOM / "pages").glob("*.md")))
def test_a_page_is_the_rendering_of_its_records(page: str) -> None:
    records = read_records(ROOM / "records" / page)
    assert (ROOM / "pages" / f"{page}.md").read_text() == render(records, "md")


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
