"""The recipes of the paper's six data sets hold the numbers of its appendix, and say what lacks."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from solverbench import registry, weights
from solverbench.baselines.published import load_published
from solverbench.baselines.recipe import Entry, Recipe, cells, load_recipe
from solverbench.benchmark.load import check_options, is_learnable, load_backbone
from solverbench.benchmark.spec import FitSpec, RunSpec
from solverbench.cli import main


@dataclass(frozen=True)
class Paper:
    """What arXiv 2510.17699 says of a data set, appendices B to D, and its authors' code."""

    nfe: tuple[int, ...]
    teacher: dict[str, object]
    teacher_nfe: int | str
    t_end: float
    guidance: float | None
    distance: str
    batch: int
    iterations: dict[str, int]
    train: dict[str, int]
    validation: int
    weight: float
    judge: str
    images: int


PIXEL_TEACHER = {"schedule": "logsnr", "variant": "bh1", "t_min": 1e-4}
SMALL, LARGE = {"gs": 1400, "gas": 1400}, {"gs": 1400, "gas": 5000}
TEN, THIRTY = {"gs": 10_000, "gas": 10_000}, {"gs": 30_000, "gas": 30_000}
PIXEL, LATENT = (4, 6, 8, 10), (4, 5, 6, 7)
R3GAN_64 = "r3gan-ffhq-64x64"
BEDROOM = {"schedule": "time-uniform", "variant": "bh2", "t_min": 1e-3}
IMAGENET = {"schedule": "time-quadratic-sqrt", "variant": "bh2", "t_min": 1e-3}
COCO = {"schedule": "gits-sd", "t_min": 1e-3}
PAPER = {
    "edm-cifar10": Paper(
        *(PIXEL, PIXEL_TEACHER, 20, 1e-3, None, "lpips", 24, TEN, SMALL, 1000, 0.1),
        *("r3gan-cifar10", 50_000),
    ),
    "edm-ffhq": Paper(
        *(PIXEL, PIXEL_TEACHER, 20, 1e-4, None, "lpips", 24, TEN, LARGE, 1000, 1.0),
        *(R3GAN_64, 50_000),
    ),
    "edm-afhqv2": Paper(
        *(PIXEL, PIXEL_TEACHER, 20, 1e-4, None, "lpips", 24, TEN, LARGE, 1000, 1.0),
        *(R3GAN_64, 50_000),
    ),
    "ldm-bedroom": Paper(
        *(LATENT, BEDROOM, 20, 1e-3, None, "l1", 8, THIRTY, LARGE, 1000, 1.0),
        *("latent-3", 50_000),
    ),
    "ldm-imagenet": Paper(
        *(LATENT, IMAGENET, 10, 1e-3, 2.0, "l1", 8, THIRTY, LARGE, 1000, 1.0),
        *("latent-3", 50_000),
    ),
    "sd15": Paper(
        *(LATENT, COCO, "student + 1", 1e-3, 7.5, "l1", 4, {"gs": 1000, "gas": 2000}, LARGE),
        *(128, 1.0, "latent-4", 30_000),
    ),
}
NAMES = list(PAPER)


def entry(recipe: Recipe, name: str) -> Entry:
    (found,) = [e for e in recipe.solvers if e.name == name]
    return found


def fit_of(recipe: Recipe, name: str) -> FitSpec:
    found = entry(recipe, name).fit or recipe.fit
    assert found is not None
    return found


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOLVERBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("SOLVERBENCH_VGG16", str(tmp_path / "vgg16.pth"))
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_gs_and_gas_train_as_the_paper_says(name: str) -> None:
    recipe, paper = load_recipe(name), PAPER[name]
    for method in ("gs", "gas"):
        fit = fit_of(recipe, method)
        assert (fit.iterations, fit.batch) == (paper.iterations[method], paper.batch)
        assert (fit.train_size, fit.validation_size) == (paper.train[method], paper.validation)
        assert (fit.distance, fit.lr, fit.lr_schedule) == (paper.distance, 1e-3, "constant")
        assert (fit.clip, fit.ema_decay, fit.ema_warmup) == (1.0, 0.999, True)
        assert (fit.validate_every, fit.select) == (500, None)
        assert entry(recipe, method).options["schedule"] == "time-uniform"
    assert recipe.seeds == [42]
    assert tuple(recipe.nfe) == paper.nfe


@pytest.mark.parametrize("name", NAMES)
def test_the_discriminator_is_that_of_the_paper(name: str) -> None:
    options, paper = entry(load_recipe(name), "gas").options, PAPER[name]
    assert (options["weight"], options["discriminator"]) == (paper.weight, paper.judge)
    assert (options["gamma"], options["disc_lr"], options["loss"]) == (0.2, 1e-5, "relativistic")


@pytest.mark.parametrize("name", NAMES)
def test_teacher_ends_of_time_and_evaluation_are_those_of_the_paper(name: str) -> None:
    recipe, paper = load_recipe(name), PAPER[name]
    options = recipe.backbone.options
    assert recipe.backbone.name == name
    assert (options["t_min"], options.get("guidance")) == (paper.t_end, paper.guidance)
    assert recipe.teacher.solver.options == paper.teacher
    assert recipe.teacher.solver.name == ("ipndm-2" if name == "sd15" else "unipc-3")
    above = recipe.teacher_above
    assert (f"student + {above}" if above else recipe.teacher.nfe) == paper.teacher_nfe
    assert recipe.evaluation.num_images == paper.images
    assert recipe.evaluation.metrics == ("fd",)


def test_only_stable_diffusion_recomputes_calls() -> None:
    memory = {name: fit_of(load_recipe(name), "gs").memory for name in NAMES}
    assert memory == dict.fromkeys(NAMES, "store") | {"sd15": "recompute"}


@pytest.mark.parametrize("name", NAMES)
def test_options_exist_and_every_cell_can_be_told_apart(name: str) -> None:
    recipe = load_recipe(name)
    specs = cells(recipe, is_learnable)
    assert len({spec.key() for spec in specs}) == len(specs)
    kind = registry.backbones.get(name)
    check_options("backbone", name, kind, recipe.backbone.options, skip=1)
    for spec in specs:
        solver = registry.solvers.get(spec.solver.name)
        check_options("solver", spec.solver.name, solver, spec.solver.options, skip=2)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_the_papers_table_has_its_cells(name: str) -> None:
    specs = cells(load_recipe(name), is_learnable)
    rows = {(s.solver.name, s.schedule.name if s.schedule else None, s.nfe) for s in specs}
    for row in load_published("2"):
        if row.backbone == name and row.solver is not None:
            assert (row.solver, row.schedule, row.nfe) in rows


def test_each_student_of_stable_diffusion_has_a_teacher_one_call_above() -> None:
    specs = cells(load_recipe("sd15"), is_learnable)
    students = [spec for spec in specs if not spec.is_teacher]
    assert {(s.nfe, s.teacher.nfe) for s in students} == {(4, 5), (5, 6), (6, 7), (7, 8)}
    assert [s.nfe for s in specs[-4:]] == [5, 6, 7, 8]
    assert all(s.is_teacher for s in specs[-4:])


def test_a_teacher_above_its_students_can_be_overruled() -> None:
    recipe = load_recipe("sd15", ["teacher.nfe=6"])
    assert {s.teacher.nfe for s in cells(recipe, is_learnable)} == {6}
    assert load_recipe("sd15", ["teacher.nfe=student + 2"]).teacher.nfe == 9


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("edm-cifar10", {"edm-cifar10-32x32-uncond-vp", "fid-cifar10-32x32", "r3gan-cifar10"}),
        ("ldm-bedroom", {"ldm-lsun-bedrooms", "fid-lsun-bedroom256"}),
        ("sd15", {"sd-v1-5", "coco-captions", "fid-coco-30k"}),
    ],
)
def test_a_dry_run_names_each_missing_file_and_how_to_get_it(
    name: str, files: set[str], empty: Path
) -> None:
    done = run("run", name, "--dry-run", "--out", empty / "runs")
    assert done.exit_code == 3
    lacking = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("missing:")}
    assert lacking - {"extractor"} == files | {"inception-2015-12-05-compat", "vgg16"}
    for file in lacking - {"extractor"}:
        assert f"solverbench weights fetch {file}" in done.stdout
    assert len(done.stderr.strip().splitlines()) == 1
    assert "solverbench weights fetch" in done.stderr
    assert not (empty / "runs").exists()
    assert not (empty / "weights").exists()


def test_a_dry_run_shows_the_recipe_as_it_was_understood_and_what_it_takes(empty: Path) -> None:
    shown = run("run", "edm-cifar10", "--dry-run").stdout
    for part in (
        "t_min=0.001, device=cuda",
        "unipc-3 (schedule=logsnr, variant=bh1, t_min=0.0001) @ 20",
        "gs, gas: iterations 10000, batch 24, lr 0.001",
        "fd of 50000 images, seeds 50000 to 99999",
        "ipndm-3 [dmn] @ 10",
        "time    about",
        "guidance makes each two network rows); one with gradients counts as 2\n",
        "TFLOP/s",
    ):
        assert part in shown


def test_a_dry_run_is_json_on_demand_and_still_ends_with_3(empty: Path) -> None:
    done = run("run", "edm-cifar10", "--solver", "gs", "--nfe", 4, "--dry-run", "--json")
    assert done.exit_code == 3
    specs = [RunSpec.model_validate(spec) for spec in json.loads(done.stdout)]
    assert [spec.solver.name for spec in specs] == ["gs", "unipc-3"]


def test_a_run_without_files_ends_at_once_with_one_line(empty: Path) -> None:
    done = run("run", "edm-cifar10", "--out", empty / "runs")
    assert done.exit_code == 3
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (empty / "runs").exists()


def present(names: set[str]) -> None:
    for name in names:
        weights.path(name).parent.mkdir(parents=True, exist_ok=True)
        weights.path(name).write_bytes(b"")


def test_with_all_files_a_missing_package_is_one_line(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present({"ldm-lsun-bedrooms", "inception-2015-12-05-compat", "fid-lsun-bedroom256", "vgg16"})
    monkeypatch.setattr("solverbench.inventory.trunk_path", lambda: weights.path("vgg16"))
    monkeypatch.setattr("solverbench.commands.importlib.util.find_spec", lambda name: None)
    for words in (("--dry-run",), ("--out", empty / "runs")):
        done = run("run", "ldm-bedroom", *words)
        assert done.exit_code == 2
        assert "diffusers, lpips, transformers; pip install 'solverbench[lpips,sd]'" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_gpu_gets_one_process_and_other_machines_one_a_core() -> None:
    from solverbench.commands import jobs_of

    assert jobs_of(load_recipe("edm-cifar10"), cores=8) == 1
    assert jobs_of(load_recipe("edm-cifar10", ["backbone.options.device=cpu"]), cores=8) == 8
    assert jobs_of(load_recipe("smoke"), cores=8) == 8


def test_with_everything_there_a_dry_run_ends_with_0_and_measures(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = registry.backbones.get("edm-cifar10")
    present({*kind.needs, *kind.measured_by})
    for module in ("commands", "benchmark.run"):  # digits stand in for what cannot be had here
        monkeypatch.setattr(
            f"solverbench.{module}.load_backbone", lambda *a, **options: load_backbone("digits")
        )
    words = ("--solver", "ipndm-3", "--nfe", 4, "--out", empty / "runs")
    done = run("run", "edm-cifar10", *words, "--dry-run", "--set", "fit.distance=l1")
    assert done.exit_code == 0, done.stderr
    assert "missing: edm" not in done.stdout
    assert "measured here" in done.stdout
    assert "0 of 4 cells are finished" in done.stdout
