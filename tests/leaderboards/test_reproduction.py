"""What counts as a reproduction of a published value, and what does not."""

from collections.abc import Callable
from typing import Any

import pytest

from solverbench.baselines.published import Published, load_published
from solverbench.benchmark.results import MetricFacts, Result
from solverbench.benchmark.store import read_records
from solverbench.leaderboards.boards import ROOT
from solverbench.leaderboards.reproduction import counted, state_of, status_page
from solverbench.leaderboards.tables import build, split

Make = Callable[..., Result]


def paper(method: str = "GS", nfe: int = 4, table: str = "2a", **fields: Any) -> Published:
    """A value of CIFAR10 in the paper's main table, unless fields say another."""
    wanted = {"data": "cifar10", "method": method, "nfe": nfe} | fields
    found = load_published(table)
    return next(p for p in found if wanted.items() <= p.model_dump().items())


@pytest.fixture
def fid(make: Make) -> Callable[..., Result]:
    """A record at the paper's scale: FID 4.45 with an error of 0.05, unless told otherwise."""

    def made(value: float = 4.45, se: float = 0.05, solver: str = "gs", **more: Any) -> Result:
        settings = {"backbone": "edm-cifar10", "num_images": 50_000, "device": "NVIDIA H100"}
        record = make(solver, 4, {"fd": value}, **(settings | more))
        facts = {"fd": MetricFacts(label="FID", higher_is_better=False)}
        return record.model_copy(update={"metric_facts": facts, "errors": {"fd": se}})

    return made


def test_nothing_of_the_paper_is_reproduced_by_the_records_that_ship() -> None:
    records = read_records(ROOT / "records")
    assert counted(records).startswith("0 of 547 values reproduced at the published scale, 0 mea")
    assert {state_of(p, records).kind for p in load_published()} == {"pending", "not here"}


def test_a_near_value_at_the_published_scale_is_reproduced(fid: Callable[..., Result]) -> None:
    state = state_of(paper(), [fid()])
    assert state.kind == "reproduced"
    assert state.text == "4.45 ± 0.05 (commit abc, NVIDIA H100, torch 2.11)"


@pytest.mark.parametrize(
    ("value", "se", "kind"),
    [
        (4.50, 0.0, "reproduced"),  # printed: 4.41
        (4.52, 0.0, "differs"),  # beyond 0.1
        (4.52, 0.04, "reproduced"),  # within three standard errors
        (4.30, 0.03, "differs"),  # better is different too
    ],
)
def test_agreement_is_a_tenth_or_three_standard_errors(
    fid: Callable[..., Result], value: float, se: float, kind: str
) -> None:
    assert state_of(paper(), [fid(value, se)]).kind == kind


def test_training_seeds_are_averaged_and_their_spread_is_part_of_the_error(
    fid: Callable[..., Result],
) -> None:
    found = [fid(4.2, 0.0, seed=0), fid(4.8, 0.0, seed=1)]
    state = state_of(paper(), found)  # mean 4.50, sd 0.42, se 0.30
    assert (state.kind, state.text[:11]) == ("reproduced", "4.50 ± 0.30")


@pytest.mark.parametrize(
    "other",
    [
        {"num_images": 2000},
        {"backbone": "cifar16"},
        {"solver": "ld3-dpmpp"},
        {"reason": "loss is not finite"},
    ],
)
def test_another_scale_backbone_or_solver_or_a_failure_reproduces_nothing(
    fid: Callable[..., Result], other: dict[str, Any]
) -> None:
    assert state_of(paper(), [fid(**other)]).kind == "pending"


def test_a_trial_run_does_not_stand_for_the_method(fid: Callable[..., Result]) -> None:
    """Nor does the best of several budgets."""
    found = [fid(4.41, iterations=20), fid(6.0, iterations=10_000)]
    assert state_of(paper(), found).kind == "differs"


def test_settings_that_a_table_names_must_be_those_of_the_record(
    fid: Callable[..., Result],
) -> None:
    value = paper(table="12a", fit={"iterations": 20_000, "train_size": 1400})
    assert state_of(value, [fid(4.35, iterations=10_000)]).kind == "pending"
    assert state_of(value, [fid(4.35, iterations=20_000)]).kind == "reproduced"


def test_the_best_ld3_is_the_best_of_its_bases(fid: Callable[..., Result]) -> None:
    found = [fid(9.3, solver="ld3-dpmpp"), fid(20.0, solver="ld3-ipndm")]
    assert state_of(paper("Best LD3"), found).kind == "reproduced"


@pytest.mark.parametrize("table", ["14a", "16", "15a"])
def test_times_and_memory_of_the_authors_machines_are_not_here(table: str) -> None:
    assert {state_of(p, []).kind for p in load_published(table)} == {"not here"}


def test_the_page_lists_every_value_once_and_its_states(fid: Callable[..., Result]) -> None:
    page = status_page([fid()])
    assert "2 of 547 values reproduced" in page  # table 9 repeats that of table 2a
    assert (
        "4: **reproduced**: 4.45 ± 0.05 (commit abc, NVIDIA H100, torch 2.11) · 6: pending [1]"
        in page
    )
    listed = sum(
        line.split(" | ")[3].count(" · ") + 1
        for line in page.splitlines()
        if line.startswith("| ") and not line.startswith(("| data", "| ---"))
    )
    assert listed == 547 + 162


def test_a_table_sets_the_papers_fid_beside_a_record_of_the_real_metric(
    fid: Callable[..., Result],
) -> None:
    """The plugin is called ``fd``; by the 2015 Inception it is what papers call FID."""
    (group,) = split([fid()])
    table = build(group, "fd", load_published("2"))
    value = table.rows[0].cells[4].published
    assert value is not None
    assert value.printed == "4.41"
