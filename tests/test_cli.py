"""Commands as a user types them; wrong input is one line and exit code 2."""

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from solverbench.benchmark.store import read_records
from solverbench.cli import main
from tests.backbones.emit import fixture_file

TINY = (
    *("--set", "evaluation.num_images=40", "--set", "evaluation.batch=20"),
    *("--set", "teacher.nfe=6", "--set", "fit.iterations=4"),
)
EMPTY = ("--backbone-option", "weights=''")
NOWHERE = ("--backbone-option", "weights=x.pkl", "--backbone-option", "device=cudda")


def run(*words: str) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    done = run("run", "smoke", "--out", root, "--quiet", *TINY)
    assert done.exit_code == 0, done.output
    return root


def test_a_run_prints_the_table_and_leaves_records_tables_and_a_picture(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"table.md", "table.csv", "table.tex", "smoke.png", "digits", "teachers"} <= names
    assert size_of(folder / "smoke.png")[1] > 8
    assert len(list((folder / "digits").rglob("nfe*.json"))) == 5
    assert not list(folder.rglob("*.tmp"))
    assert not list(folder.rglob("*.work"))


def test_a_second_run_does_no_work_and_prints_the_same(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    done = run("run", "smoke", "--out", folder, "--quiet", *TINY)
    assert done.exit_code == 0
    assert "GS" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_json_is_one_document_on_standard_output(folder: Path) -> None:
    done = run("run", "smoke", "--out", folder, "--json", *TINY)
    records = json.loads(done.stdout)
    assert {r["spec"]["solver"]["name"] for r in records} == {"dpmpp-3m", "unipc-3", "gs", "gas"}
    assert all(r["cost"]["nfe"] == r["spec"]["nfe"] for r in records)


def test_csv_is_in_long_form(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run("table", folder, "--format", "csv").stdout)))
    assert {"solver", "backbone", "nfe", "fd"} <= set(rows[0])
    assert len(rows) == 5
    assert all(float(row["fd"]) >= 0 for row in rows)


@pytest.mark.parametrize("fmt", ["md", "latex", "console"])
def test_tables_name_every_solver(folder: Path, fmt: str) -> None:
    shown = run("table", folder, "--format", fmt).stdout
    assert all(title in shown for title in ("DPM++ (3M)", "UniPC (3M)", "GS"))


def test_a_trained_solver_can_be_shown_and_sampled(folder: Path, tmp_path: Path) -> None:
    (file,) = (folder / "digits" / "gs").glob("nfe04-????????????.safetensors")
    shown = run("show", file)
    assert shown.exit_code == 0
    assert "arXiv 2510.17699" in shown.stdout
    facts = json.loads(run("show", file, "--json").stdout)
    assert len(facts["A"]) == 5
    grid = tmp_path / "grid.png"
    done = run("sample", file, "--backbone", "digits", "--seeds", "0-8", "--out", grid)
    assert done.exit_code == 0, done.output
    assert size_of(grid) == (3 * 48 + 4, 3 * 48 + 4)


def test_samples_of_each_seed_can_be_measured_as_a_folder(tmp_path: Path) -> None:
    words = ("sample", "ddim", "--backbone", "digits", "--nfe", "4", "--seeds", "7-12")
    done = run(*words, "--out", tmp_path / "grid.png", "--png", tmp_path / "each")
    assert done.exit_code == 0, done.output
    names = [path.name for path in sorted((tmp_path / "each").iterdir())]
    assert names == [f"{seed:06d}.png" for seed in range(7, 13)]
    assert size_of(tmp_path / "each" / names[0]) == (8, 8)
    first = (tmp_path / "each" / names[0]).read_bytes()
    assert run(*words, "--out", tmp_path / "grid.png", "--png", tmp_path / "again").exit_code == 0
    assert (tmp_path / "again" / names[0]).read_bytes() == first
    measured = run(
        *("evaluate", tmp_path / "each", "--reference", "digits", "--metrics", "fd", "--json"),
        *("--extractor", "digits", "--no-cache"),
    )
    assert measured.exit_code == 0, measured.output
    (fd,) = json.loads(measured.stdout)["metrics"]
    assert (fd["metric"], fd["num_generated"]) == ("fd", 6)
    assert fd["value"] > 0


def test_a_dry_run_lists_cells_and_writes_nothing(tmp_path: Path) -> None:
    done = run("run", "smoke", "--dry-run", "--out", tmp_path / "runs")
    assert done.exit_code == 0
    assert "gs @ 4" in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "kind",
    ["solvers", "backbones", "metrics", "distances", "extractors", "schedules", "recipes"],
)
def test_lists_are_json_on_demand(kind: str) -> None:
    rows = json.loads(run("list", kind, "--json").stdout)
    assert rows
    assert all(row["name"] and row["about"] and row["package"] for row in rows)


def test_the_doctor_knows_the_machine() -> None:
    rows = json.loads(run("doctor", "--json").stdout)
    found = {row["what"]: row for row in rows}
    assert found["digits"]["good"]
    assert found["solvers"]["good"]


def test_a_backbone_is_checked_with_its_options(tmp_path: Path) -> None:
    file = fixture_file("edm-tiny-uncond-ddpmpp.pkl", tmp_path)
    done = run("check", "edm", "--backbone-option", f"weights={file}")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("ok  ") >= 8


def test_check_prints_each_check_of_a_plugin() -> None:
    done = run("check", "ddim")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("ok  ") >= 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "smoke", "--solver", "dpmpp3m"], "did you mean 'dpmpp-3m'"),
        (["run", "smoke", "--backbone", "digit"], "did you mean 'digits'"),
        (["run", "cifar61"], "did you mean 'cifar16'"),
        (["run", "/no/such/recipe.yaml"], "/no/such/recipe.yaml"),
        (["run", "smoke", "--solver", "heun", "--nfe", "6"], "heun needs an odd nfe"),
        (["run", "smoke", "--set", "fit.iteration=3"], "fit.iteration: unknown key"),
        (["run", "smoke", "--set", "fit.iterations=0"], "fit.iterations"),
        (["run", "smoke", "--set", "fit.distance=lpipz"], "unknown distance 'lpipz'"),
        (["run", "smoke", "--set", "evaluation.metrics=[fid9]"], "unknown metric 'fid9'"),
        (["run", "smoke", "--set", "solvers.0.options={ordr: 2}"], "has no option 'ordr'"),
        (["run", "smoke", "--set", "backbone.options={guidance: 2}"], "unconditional"),
        (["run", "smoke", "--nfe", "0"], "'0' is no whole number from 1 to 4096"),
        (["run", "smoke", "--nfe", "9-4"], "'9-4' is no whole number"),
        (["run", "smoke", "--nfe", "99999999999999999999"], "is no whole number from 1 to 4096"),
        (["run", "smoke", "--num-images", "-3"], "num-images"),
        (["run", "smoke", "--backbone", "gaussian"], "has no extractor"),
        (["run", "smoke", "--set", "fit.lr=1e400"], "fit.lr"),
        (["run", "smoke", "--set", "evaluation.metrics=[]"], "evaluation.metrics"),
        (["run", "smoke", "--set", "evaluation.first_seed=4294967296"], "seeds end at"),
        (["run", "smoke", "--set", "name=../evil"], "name"),
        (["run", "smoke", "--set", "solvers.0.options={lower_order_final: 'no'}"], "wanted: bool"),
        (
            ["run", "smoke", "--set", "solvers.0.options={schedule: [9, 5, 3, 2, 1]}"],
            "starts where",
        ),
        (["run", "smoke", "--set", "solvers.0.options={t_min: 1e-6}"], "the backbone reaches"),
        (["sample", "ddim", "--backbone", "digits", "--nfe", "4", "--out", "/tmp"], "is a folder"),
        (["sample", "ddim", "--nfe", "4", "--option", "rho=["], "not YAML"),
        (["check", "l2"], "is one of the distances"),
        (["check", "edm"], "edm needs weights=PATH"),
        (["check", "ddim", "--backbone-option", "weights=x"], "'ddim' is no backbone"),
        (["sample", "ddim", "--nfe", "4", "--option", 'rho=!!int ""'], "does not fit its tag"),
        (["run", "smoke", "--set", "backbone.options.device=!!bool zz"], "does not fit its tag"),
        (["run", "smoke", "--set", "fit.lr=!!timestamp zz"], "does not fit its tag"),
        *(
            (
                [*("sample", "ddim", "--nfe", "4"), *("--backbone", name), *EMPTY],
                f"backbone {name}: option weights is empty",
            )
            for name in ("edm", "ldm", "sd", "edm-cifar10", "ldm-bedroom", "sd15")
        ),
        (
            [*("sample", "ddim", "--nfe", "4", "--backbone", "edm"), *NOWHERE],
            "device cudda is not available here; allowed: cpu",
        ),
        (["run", "smoke", "--jobs", "0"], "jobs"),
        (["run", "smoke", "--out", "/dev/null/runs"], "cannot write in /dev/null/runs"),
        (["table", "/no/such/folder"], "no folder /no/such/folder"),
        (["show", "/no/such/file"], "/no/such/file is missing"),
        (["sample", "gs", "--backbone", "digits", "--nfe", "4"], "must be trained first"),
        (["sample", "ddim", "--backbone", "digits"], "--nfe is needed"),
        (["sample", "ddim", "--nfe", "4", "--option", "schedule"], "write key=value"),
        (["check", "ddmi"], "did you mean 'ddim'"),
        (["list", "solver"], "did you mean 'solvers'"),
        (["backbone", "train", "cifar61"], "did you mean 'cifar16'"),
        (["frobnicate"], "No such command"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    words: list[str], said: str, tmp_path: Path
) -> None:
    if words[0] == "run" and "--out" not in words:
        words = [*words, "--out", str(tmp_path / "runs")]
    done = run(*words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_is_set_holds_for_rows_named_on_the_command_line(tmp_path: Path) -> None:
    words = ("run", "smoke", "--solver", "ipndm-3", "--out", tmp_path, "--dry-run", "--json")
    done = run(*words, "--set", "solvers.0.options.lower_order_final=true")
    options = [spec["solver"]["options"] for spec in json.loads(done.stdout)]
    assert {"lower_order_final": True} in options


def test_options_are_numbers_where_they_look_like_numbers(tmp_path: Path) -> None:
    words = ("sample", "ddim", "--backbone", "digits", "--nfe", "4", "--seeds", "0-3")
    done = run(*words, "--option", "t_min=1e-2", "--out", tmp_path / "grid.png")
    assert done.exit_code == 0, done.output


def test_a_record_falls_when_the_solver_behind_it_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from solverbench.benchmark.run import Run
    from solverbench.benchmark.store import read_records
    from solverbench.solvers.dpmpp import DPMpp3M

    spec = next(r.spec for r in read_records(folder) if r.spec.solver.name == "dpmpp-3m")
    assert Run(spec, folder).done() is not None
    monkeypatch.setattr(DPMpp3M, "order", 1)
    assert Run(spec, folder).done() is None


def test_a_foreign_tableau_is_refused_before_sampling(folder: Path) -> None:
    block = next((folder / "teachers").rglob("*.safetensors"))
    done = run("sample", block, "--backbone", "digits")
    assert done.exit_code == 2
    assert str(block) in done.stderr


def test_a_torn_record_is_named(folder: Path, tmp_path: Path) -> None:
    record = next((folder / "digits" / "gs").glob("*.json"))
    torn = tmp_path / "digits" / "gs" / record.name
    torn.parent.mkdir(parents=True)
    torn.write_text(record.read_text()[:100])
    done = run("table", tmp_path)
    assert done.exit_code == 2
    assert str(torn) in done.stderr


def test_a_fit_that_diverges_is_a_failed_row_and_exit_code_1(tmp_path: Path) -> None:
    """The other rows are complete."""
    options = ("--set", "fit.lr=1e3", "--solver", "dpmpp-3m,gs,s4s,s4s-lms-gas")
    done = run("run", "smoke", "--out", tmp_path, "--quiet", *TINY, *options)
    assert done.exit_code == 1, done.output
    assert "failed" in done.stdout
    results = read_records(tmp_path)
    assert {r.spec.solver.name for r in results if r.status == "ok"} == {"dpmpp-3m", "unipc-3"}
    reasons = {r.spec.solver.name: r.reason for r in results if r.status == "failed"}
    assert reasons.keys() == {"gs", "s4s", "s4s-lms-gas"}
    assert all("diverged" in reason for reason in reasons.values())
    assert (tmp_path / "table.md").read_text().count("diverged") >= 3
