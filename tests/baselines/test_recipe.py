"""Recipes: complete, checked whole, and a mistake is one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from solverbench.baselines.recipe import Recipe, cells, load_recipe, recipe_names
from solverbench.benchmark.spec import RunSpec
from solverbench.errors import SolverBenchError

FREE = ("ddim", "heun", "dpm-", "dpmpp", "unipc", "ipndm", "adams", "deis")


def learns(name: str) -> bool:
    return not name.startswith(FREE)


def summary(specs: list[RunSpec]) -> list[tuple[str, int, int, bool]]:
    return [(s.solver.name, s.nfe, s.seed, s.fit is not None) for s in specs]


@pytest.mark.parametrize(
    "module", ["solverbench.leaderboards.render", "solverbench.baselines.recipe"]
)
def test_tables_and_recipes_are_loaded_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", recipe_names())
def test_a_packaged_recipe_is_named_like_its_file_and_ends_with_the_teacher(name: str) -> None:
    recipe = load_recipe(name)
    specs = cells(recipe, learns)
    assert recipe.name == name
    assert recipe.about
    teachers = [s for s in specs if s.is_teacher]
    assert teachers
    assert specs[-len(teachers) :] == teachers
    assert len({s.key() for s in specs}) == len(specs)
    assert all((s.fit is not None) == learns(s.solver.name) for s in specs)


def test_the_sizes_of_the_packaged_matrices() -> None:
    counts = {name: len(cells(load_recipe(name), learns)) for name in recipe_names()}
    assert counts == {
        "cifar16": 7 * 2 + 1,
        "digits": 7 * 3 + 1,
        "smoke": 4 + 1,
        "full-digits": 196,
        "full-cifar16": 343,
        **dict.fromkeys(("edm-cifar10", "edm-ffhq", "edm-afhqv2"), 14 * 4 + 1),
        **dict.fromkeys(("ldm-bedroom", "ldm-imagenet"), 14 * 4 + 1),
        "sd15": 8 * 4 + 4,
    }


def test_numbers_without_a_dot_are_numbers_in_options_too() -> None:
    recipe = load_recipe("cifar16")
    assert recipe.fit is not None
    assert recipe.fit.lr == 1e-2
    assert recipe.teacher.solver.options["t_min"] == 1e-4


def test_words_that_old_yaml_reads_as_booleans_stay_words() -> None:
    recipe = load_recipe("smoke", ["solvers.0.options={final: no, lower: true, n: 3, s: 1.5}"])
    assert recipe.solvers[0].options == {"final": "no", "lower": True, "n": 3, "s": 1.5}


def test_learned_solvers_have_a_cell_a_seed_and_others_only_one() -> None:
    recipe = load_recipe("smoke", ["seeds=[3, 5]"])
    assert summary(cells(recipe, learns)) == [
        ("dpmpp-3m", 4, 0, False),
        ("unipc-3", 4, 0, False),
        ("gs", 4, 3, True),
        ("gs", 4, 5, True),
        ("gas", 4, 3, True),
        ("gas", 4, 5, True),
        ("unipc-3", 20, 0, False),
    ]


def test_an_entry_has_its_own_nfe_seeds_and_parts_of_the_budget() -> None:
    recipe = load_recipe(
        "smoke",
        ["solvers.2.nfe=[3, 5]", "solvers.2.seeds=1", "solvers.2.fit.iterations=7"],
    )
    specs = [s for s in cells(recipe, learns) if s.solver.name == "gs"]
    assert [(s.nfe, s.seed) for s in specs] == [(3, 1), (5, 1)]
    assert specs[0].fit is not None
    assert (specs[0].fit.iterations, specs[0].fit.lr) == (7, 2e-2)


def test_equal_cells_are_run_once_and_the_teacher_stays_last() -> None:
    teacher = "{name: unipc-3, options: {t_min: 1e-4, variant: bh1, schedule: logsnr}}"
    recipe = load_recipe("smoke", [f"solvers=[{teacher}, ddim, ddim]", "nfe=[20]"])
    assert [s.solver.name for s in cells(recipe, learns)] == ["ddim", "unipc-3"]


def test_a_file_and_bare_names_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nbackbone: digits\nsolvers: [ddim]\nnfe: 4\nteacher: {solver: ddim, nfe: 50}\n"
    )
    recipe = load_recipe(str(path), ["backbone.options.frame=ve"])
    assert isinstance(recipe, Recipe)
    assert recipe.backbone.options == {"frame": "ve"}
    assert summary(cells(recipe, learns)) == [("ddim", 4, 0, False), ("ddim", 50, 0, False)]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["fit.iteration=3"], "recipe smoke: fit.iteration: unknown key; allowed: batch, clip, "),
        (["sead=3"], "sead: unknown key; allowed: about, backbone, "),
        (
            ["solvers.0.nme=3"],
            "solvers.0.nme: unknown key; allowed: fit, name, nfe, options, schedule, seeds",
        ),
        (["teacher.solver.foo=3"], "teacher.solver.foo: unknown key; allowed: name, options"),
        (["fit.lr=fast", "grid=0"], "fit.lr: input should be a valid number"),
        (["fit.lr=fast", "grid=0"], "; grid: input should be greater than 0 (got 0); correct"),
        (["fit.batch=5000"], "fit: batch 5000 is larger than train_size 64"),
        (["nfe=[]"], "nfe: "),
        (["nfe=true"], "nfe: "),
        (["evaluation.first_seed=3"], "evaluation.first_seed: "),
        (["solvers.9.nfe=3"], "'9' cannot be set, this is a list; allowed: 0 to 3"),
        (["grid.a=3"], "'a' cannot be set, this is no section"),
        (["grid"], "write a.b=c"),
        (["a..b=1"], "write a.b=c"),
        (["nfe=[4"], "not YAML in line 1"),
        (["nfe=!!python/object:os.system 3"], "not YAML"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_allowed(overrides: list[str], says: str) -> None:
    with pytest.raises(SolverBenchError) as caught:
        load_recipe("smoke", overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_learned_solver_without_a_budget_is_refused() -> None:
    with pytest.raises(SolverBenchError, match="'gs' is trained and there is no budget"):
        cells(load_recipe("smoke", ["fit=null"]), learns)


def test_a_budget_of_a_solver_that_learns_nothing_is_refused() -> None:
    with pytest.raises(SolverBenchError, match="'dpmpp-3m' is not trained"):
        cells(load_recipe("smoke", ["solvers.0.fit.iterations=3"]), learns)


def test_a_near_miss_is_suggested_and_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SolverBenchError, match="did you mean 'cifar16'"):
        load_recipe("cifar61")
    with pytest.raises(SolverBenchError, match=r"cannot read recipe .*gone\.yaml: No such file"):
        load_recipe(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("text", "says"), [("", "no keys"), ("a: [", "not YAML in line"), ("- 1", "no keys")]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SolverBenchError, match=says):
        load_recipe(path)
