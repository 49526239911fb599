"""Experiments: every table and figure of the paper has one, and each resolves into cells."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from solverbench import registry
from solverbench.baselines import experiments
from solverbench.baselines.experiments import (
    SCALES,
    ScaleName,
    experiment_ids,
    load_experiment,
    part_recipe,
    select,
)
from solverbench.baselines.published import TABLES, load_published
from solverbench.baselines.recipe import cells, load_recipe
from solverbench.benchmark.load import check_options, is_learnable
from solverbench.benchmark.spec import RunSpec
from solverbench.errors import SolverBenchError
from solverbench.leaderboards.shelf import COMMITTED, Shelf
from solverbench.papers import STORED, resolve, sheet_of

FIGURES = {*range(3, 26)}  # 1 and 2 are drawings


def specs_of(name: str, scale: ScaleName) -> Iterator[RunSpec]:
    for one in resolve(load_experiment(name), scale):
        yield from one.all_specs


def test_every_table_and_figure_of_the_paper_has_one_experiment() -> None:
    found = [load_experiment(name) for name in experiment_ids()]
    tables = Counter(table for one in found for table in one.tables)
    assert tables == Counter(TABLES)
    assert {figure for one in found for figure in one.figures} == FIGURES
    assert [one.id for one in found] == experiment_ids()


@pytest.mark.parametrize(
    ("name", "found"), [("2a", "2a"), ("14b", "13"), ("14", "13"), ("18", "17"), ("fig3", "3")]
)
def test_a_table_or_figure_names_its_experiment(name: str, found: str) -> None:
    assert load_experiment(name).id == found


def test_an_unknown_table_is_one_line_with_the_nearest() -> None:
    with pytest.raises(SolverBenchError, match="unknown table or figure '2d'; did you mean '2"):
        load_experiment("2d")


@pytest.mark.parametrize("name", experiment_ids())
def test_a_finding_quotes_printed_numbers(name: str) -> None:
    experiment = load_experiment(name)
    assert "{" not in experiment.found
    for where in experiment.numbers.values():
        (value,) = select(where, load_published(str(where["table"])))
        assert value.bound + value.printed in experiment.found


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", experiment_ids())
def test_every_row_resolves_into_cells_with_options_that_exist(name: str, scale: ScaleName) -> None:
    for one in resolve(load_experiment(name), scale):
        for line in one.part.rows:
            wanted = line.solvers or line.teacher or line.transfer
            assert bool(one.specs[line.label]) == bool(wanted), line.label
        for spec in one.all_specs:
            if spec.solver.name != STORED:
                kind = registry.solvers.get(spec.solver.name)
                check_options("solver", spec.solver.name, kind, spec.solver.options, skip=2)
                assert (spec.fit is not None) == is_learnable(spec.solver.name)
            for metric in spec.evaluation.metrics:
                registry.metrics.get(metric)


@pytest.mark.parametrize("name", experiment_ids())
def test_the_embedded_scale_has_three_seeds_on_the_cpu_and_a_size(name: str) -> None:
    assert load_experiment(name).embedded.core_hours is not None
    for one in resolve(load_experiment(name), "embedded"):
        assert str(one.recipe.backbone.options.get("device", "cpu")) == "cpu"
        assert {s.seed for s in one.all_specs if s.fit} in ({0, 1, 2}, set())


@pytest.mark.parametrize("name", experiment_ids())
def test_the_published_scale_shows_every_printed_value_of_its_tables(name: str) -> None:
    experiment = load_experiment(name)
    sheets = [sheet_of(one) for one in resolve(experiment, "published")]
    slots = [slot for sheet in sheets for row in sheet.rows for slot in row.slots.values()]
    shown = [value for slot in slots for value in slot.published.values()]
    for table in experiment.tables:
        for value in load_published(table):
            assert value in shown


@pytest.mark.parametrize(
    ("name", "recipe"), [("2a", "edm-cifar10"), ("2b", "ldm-imagenet"), ("2c", "sd15")]
)
def test_table_2_at_its_own_scale_runs_the_cells_of_the_recipe(name: str, recipe: str) -> None:
    """But for S4S, which table 2a does not print."""
    wanted = {
        spec.key(): spec.solver.name
        for spec in cells(load_recipe(recipe), is_learnable)
        if spec.solver.name != "s4s" or name == "2c"
    }
    found = {spec.key() for spec in specs_of(name, "published")}
    assert {solver for key, solver in wanted.items() if key not in found} == set()


@pytest.mark.parametrize("name", ["4", "6"])
def test_records_that_ship_serve_experiments_of_the_same_cells(name: str) -> None:
    shelf = Shelf([COMMITTED])
    missing = [s for s in specs_of(name, "embedded") if shelf.get(s.key()) is None]
    assert missing == []


def test_gs_and_gas_have_odd_nfe_beside_those_of_the_paper() -> None:
    for scale in SCALES:
        for solver in ("gs", "gas"):
            found = {s.nfe for s in specs_of("2a", scale) if s.solver.name == solver}
            assert found >= {3, 4, 5, 6, 7, 8, 9, 10}


def test_transfers_sample_the_solvers_of_the_other_part() -> None:
    found = {one.part.name: one for one in resolve(load_experiment("7"), "embedded", Path("r"))}
    trained = found["high"].specs["GS"]
    files = [f"r/digits-high/gs/nfe{s.nfe:02d}-{s.key()}.safetensors" for s in trained]
    moved = found["low"].specs["GS'"]
    assert [s.solver.options["tableau"] for s in moved] == files
    assert {s.backbone.name for s in moved} == {"digits-low"}
    assert all(s.fit is None for s in moved)


def test_seeds_can_be_chosen() -> None:
    found = resolve(load_experiment("6"), "embedded", seeds=(5,))
    assert {s.seed for one in found for s in one.all_specs if s.fit} == {5}


def test_an_unknown_key_names_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (experiments.FOLDER / "6.yaml").read_text().replace("nfe: [4]", "nfes: [4]", 1)
    (tmp_path / "6.yaml").write_text(text)
    monkeypatch.setattr(experiments, "FOLDER", tmp_path)
    load_experiment.cache_clear()
    try:
        with pytest.raises(SolverBenchError, match=r"experiment 6: embedded\.parts\.0\.nfe"):
            load_experiment("6")
    finally:
        load_experiment.cache_clear()


def test_a_solver_that_its_recipe_lacks_is_named() -> None:
    part = load_experiment("6").embedded.parts[0]
    lines = [part.rows[0].model_copy(update={"solvers": ["gs@gits"]})]
    with pytest.raises(SolverBenchError, match="recipe full-digits has no solver 'gs@gits'"):
        part_recipe(part, "t", lines)
