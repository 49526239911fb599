"""Settings of the network from recipes and the command line to the notes below tables."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from solverbench.baselines.recipe import cells, load_recipe
from solverbench.benchmark.spec import EXACT, FAST, NetworkSpec
from solverbench.cli import main
from solverbench.commands import Choice, chosen_recipe, described
from solverbench.errors import SolverBenchError
from solverbench.leaderboards.notes import notes
from tests.leaderboards.conftest import make


def learns(name: str) -> bool:
    return name in ("gs", "gas")


def test_a_recipe_sets_the_network_of_all_its_cells_and_of_the_teacher() -> None:
    assert {spec.network for spec in cells(load_recipe("smoke"), learns)} == {EXACT}
    recipe = load_recipe("smoke", ["network.tf32=true", "network.autocast=bfloat16"])
    wanted = NetworkSpec(tf32=True, autocast="bfloat16")
    specs = cells(recipe, learns)
    assert specs[-1].is_teacher
    assert {spec.network for spec in specs} == {wanted}
    assert str(wanted) == "tf32, autocast bfloat16"


def test_fast_switches_on_its_own_set_and_overrides_come_after_it() -> None:
    assert chosen_recipe("smoke", Choice(fast=True)).network == FAST
    other = Choice(fast=True, overrides=("network.channels_last=false", "network.tf32=true"))
    assert chosen_recipe("smoke", other).network == NetworkSpec(tf32=True)


def test_fast_keeps_what_a_recipe_has_switched_on(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "{name: mine, backbone: digits, solvers: [ddim], nfe: 4, network: {tf32: true}, "
        "teacher: {solver: ddim, nfe: 50}}"
    )
    wanted = NetworkSpec.model_validate({"tf32": True} | FAST.model_dump())
    assert chosen_recipe(str(path), Choice(fast=True)).network == wanted


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("network.fast=true", "network.fast: unknown key; allowed: autocast, channels_last, "),
        ("network.autocast=float16", "network.autocast: input should be 'bfloat16' (got 'float16"),
        ("network.tf32=much", "network.tf32: input should be a valid boolean"),
        ("network=fast", "network: "),
    ],
)
def test_a_wrong_setting_is_one_line_that_says_what_is_allowed(override: str, says: str) -> None:
    with pytest.raises(SolverBenchError) as caught:
        load_recipe("smoke", [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_help_names_what_fast_switches_on() -> None:
    shown = " ".join(CliRunner().invoke(main, ["run", "--help"]).output.split())
    assert "--fast" in shown
    assert all(f"network.{key}" in shown for key in FAST.model_dump())


def test_a_dry_run_says_how_the_network_is_run_where_it_is_not_exact() -> None:
    told = [described(chosen_recipe("smoke", Choice(fast=fast))) for fast in (False, True)]
    assert [f"network     {FAST}" in lines for lines in told] == [False, True]


def test_no_fast_row_stands_below_a_table_without_a_note() -> None:
    exact, fast = make("unipc-3", 4, {"fd": 2.0}), make("ddim", 4, {"fd": 3.0})
    spec = fast.spec.model_copy(update={"network": NetworkSpec(tf32=True)})
    fast = fast.model_copy(update={"spec": spec})
    found = [note for note in notes([exact, fast], []) if note.startswith("Network")]
    assert found == ["Network run with tf32, not exactly: DDIM."]
    alone = [note for note in notes([fast], []) if note.startswith("Network")]
    assert alone == ["Network run with tf32, not exactly: every row."]
    assert not [note for note in notes([exact], []) if note.startswith("Network")]
