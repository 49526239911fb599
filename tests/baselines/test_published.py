"""Published values: as many as the tables have, with names that exist here."""

import tomllib
from collections import Counter
from pathlib import Path

import pytest

from solverbench.baselines.published import Published, load_published

ROOT = Path(__file__).parents[2]


def one(data: str, method: str, nfe: int) -> Published:
    (found,) = (p for p in load_published("2") if (p.data, p.method, p.nfe) == (data, method, nfe))
    return found


def test_every_table_has_its_rows_times_columns() -> None:
    counts = Counter(p.data for p in load_published("2"))
    pixel, latent = 11 * 4 + 1, 11 * 4 + 1  # eleven methods at four NFE, one teacher
    assert counts == {
        "cifar10": pixel,
        "ffhq": pixel,
        "afhqv2": pixel,
        "lsun-bedroom": latent,
        "imagenet": latent,
        "ms-coco": 6 * 4 + 4,  # a teacher for each NFE
    }


def test_no_cell_is_there_twice() -> None:
    cells = Counter((p.data, p.method, p.nfe) for p in load_published("2"))
    assert max(cells.values()) == 1


@pytest.mark.parametrize(
    ("data", "method", "nfe", "value", "flags"),
    [
        ("cifar10", "GS", 4, 4.41, ()),
        ("ffhq", "GAS", 4, 7.86, ()),
        ("afhqv2", "Teacher", 20, 2.16, ("teacher",)),
        ("lsun-bedroom", "UniPC [DMN]", 6, 4.40, ("quoted",)),
        ("imagenet", "S4S Alt", 4, 5.13, ("other-teacher", "quoted")),
        ("imagenet", "Teacher", 10, 4.10, ("teacher",)),
        ("ms-coco", "iPNDM (2M)", 7, 13.76, ("other-evaluator", "quoted")),
        ("ms-coco", "Teacher", 5, 14.10, ("other-evaluator", "teacher")),
    ],
)
def test_values_stand_as_printed(
    data: str, method: str, nfe: int, value: float, flags: tuple[str, ...]
) -> None:
    entry = one(data, method, nfe)
    assert (entry.value, entry.flags) == (value, flags)
    assert entry.source.startswith("arXiv 2510.17699 Table 2")


def test_plugins_named_here_are_of_this_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plugins = project["entry-points"]
    assert {p.solver for p in load_published("2") if p.solver} <= set(
        plugins["solverbench.solvers"]
    )
    schedules = {p.schedule for p in load_published("2") if p.schedule}
    assert schedules == {"gits", "gits-sd", "dmn"} <= set(plugins["solverbench.schedules"])


def test_only_teachers_and_the_best_of_several_have_no_solver_here() -> None:
    methods = {p.method for p in load_published("2") if p.solver is None}
    assert methods == {"Teacher", "Best LD3"}


def test_brackets_in_a_method_stand_for_optimised_times() -> None:
    for entry in load_published("2"):
        optimiser = entry.method.partition("[")[2].rstrip("]").lower()
        assert (entry.schedule or "").removesuffix("-sd") == optimiser
        assert not (entry.schedule and "schedule" in entry.options)
