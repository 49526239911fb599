"""A run is packed, stands when it is run again, and falls when anything of it is changed."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from solverbench import tensorfile
from solverbench.benchmark.outcome import FORMAT
from solverbench.benchmark.run import run
from solverbench.benchmark.spec import EvaluationSpec, FitSpec, Named, RunSpec, TeacherSpec
from solverbench.benchmark.store import influence_path, read_record, write_record
from solverbench.cli import main
from solverbench.leaderboards import boards
from solverbench.leaderboards.committed import read_source
from solverbench.leaderboards.submissions import MANIFEST
from solverbench.leaderboards.tensors import read_tensors
from solverbench.solvers.tableau import Tableau
from solverbench.validating import rerun

TEACHER = TeacherSpec(solver=Named(name="unipc-3", options={"schedule": "logsnr"}), nfe=8)
FIT = FitSpec(iterations=2, batch=4, train_size=8, validation_size=8, validate_every=1)


def cell(solver: str, fit: FitSpec | None = None) -> RunSpec:
    return RunSpec(
        backbone=Named(name="digits"),
        solver=Named(name=solver),
        nfe=3,
        teacher=TEACHER,
        evaluation=EvaluationSpec(num_images=24, batch=12, metrics=("fd", "rmse-teacher")),
        fit=fit,
    )


def cli(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a submission: a training-free solver and a trained one on digits."""
    folder = tmp_path_factory.mktemp("runs")
    for spec in (cell("ddim"), cell("gs", FIT)):
        run(spec, folder / "run")
    words = ("--name", "someone", "--contact", "A. Person", "--url", "https://example.org/x")
    done = cli("submit", folder / "run", *words, "--out", folder / "submission")
    assert done.exit_code == 0, done.output
    return folder / "submission" / "records" / "community" / "someone"


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "someone"))


def seal(folder: Path) -> None:
    """Make a manifest fit whatever lies there, as somebody who means harm would."""
    path = folder / MANIFEST
    said = json.loads(path.read_text())
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != path)
    said["files"] = {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }
    path.write_text(json.dumps(said))


def record_of(folder: Path, solver: str) -> Path:
    return next(folder.rglob(f"{solver}/nfe03-*.json"))


def refused(folder: Path) -> str:
    """The one line of a validation that fails."""
    done = cli("validate", folder)
    assert done.exit_code == 1
    (line,) = [row for row in done.stdout.splitlines() if not row.startswith("ok  ")]
    return line


def test_what_was_submitted_stands(packed: Path) -> None:
    done = cli("validate", packed)
    assert done.exit_code == 0, done.output
    first, second, verdict = done.stdout.splitlines()
    assert first.startswith("ok   DDIM, digits, NFE 3, seed 0: 24 images; table as the formulas")
    assert second.startswith("ok   GS, digits, NFE 3, seed 0: 24 images; RMSE-T of each as record")
    assert verdict.endswith("2 records stand; RMSE-T and calls were re-run, FD was not")


def test_a_submission_holds_data_and_nothing_else(packed: Path) -> None:
    names = sorted("".join(p.suffixes[-2:]) for p in packed.rglob("*") if p.is_file())
    assert names == sorted([".json", *[".influence.safetensors", ".safetensors", ".json"] * 2])
    assert str(packed.parents[3]) not in "".join(p.read_text() for p in packed.rglob("*.json"))
    said = json.loads((packed / MANIFEST).read_text())
    assert (said["name"], said["contact"], said["protocol"]) == ("someone", "A. Person", 1)


def test_a_submission_is_found_above_its_folder_too(packed: Path) -> None:
    assert cli("validate", packed.parents[2], "--images", "2").exit_code == 0


def test_its_rows_stand_on_the_board_as_community(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "records" / "community" / "someone")
    assert cli("leaderboard", "build", "--root", tmp_path).exit_code == 0
    page = (tmp_path / "pages" / "backbones" / "digits-protocol-1.md").read_text()
    link = "[0](../../records/community/someone/digits/gs/nfe03-"
    assert f"| GS | 3 | community (someone) | {link}" in page
    assert "- Community submission someone: A. Person, https://example.org/x." in page
    assert not (tmp_path / "pages" / "community").exists()
    (tmp_path / "records" / "community" / "someone" / "run.sh").write_text("true")
    done = cli("leaderboard", "check", "--root", tmp_path)
    assert "run.sh has no place in a submission" in done.stdout


def test_a_cell_that_is_committed_already_is_a_duplicate(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record_of(packed, "ddim")
    write_record(tmp_path / "records" / "mine", read_record(path))
    monkeypatch.setattr(boards, "ROOT", tmp_path)
    assert refused(packed).endswith("is a duplicate: mine has its cell already")
    run_folder = packed.parents[3] / "run"
    done = cli("submit", run_folder, "--name", "b", "--contact", "me", "--out", tmp_path / "out")
    assert "its cell is on the leaderboard already" in done.stdout.splitlines()[0]
    assert not list((tmp_path / "out").rglob("ddim"))


def test_a_changed_file_has_another_hash(copy: Path) -> None:
    path = record_of(copy, "gs")
    path.write_text(path.read_text().replace('"fd":', '"fd" :', 1))
    assert refused(copy).endswith("has another SHA-256 than the manifest says")


def test_a_missing_file_is_named(copy: Path) -> None:
    record_of(copy, "gs").with_suffix(".safetensors").unlink()
    assert refused(copy).endswith("is missing; the manifest names it")


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (".influence.safetensors", "is missing; its record names it"),
        (".safetensors", "has no tableau beside it; a submission needs the solver"),
    ],
)
def test_a_submission_without_a_sidecar_is_refused(copy: Path, ending: str, said: str) -> None:
    record_of(copy, "gs").with_suffix(ending).unlink()
    seal(copy)
    assert refused(copy).endswith(said)


def test_a_better_error_than_its_images_give_is_found(copy: Path) -> None:
    path = record_of(copy, "gs")
    result = read_record(path)
    write_record(
        copy, result.model_copy(update={"metrics": result.metrics | {"rmse-teacher": 0.01}})
    )
    seal(copy)
    assert "its rmse-teacher is 0.01, the mean over images" in refused(copy)


def test_made_up_influences_are_found_by_the_re_run(copy: Path) -> None:
    """Record, influences and manifest agree with each other, but not with the tableau."""
    path = record_of(copy, "gs")
    result, lies = read_record(path), influence_path(path)
    rows = {k: torch.from_numpy(v.copy()) for k, v in read_tensors(lies).tensors.items()}
    rows["rmse-teacher"] *= 0.9
    sha256 = tensorfile.write(lies, FORMAT, rows, {"rows": "in the order of evaluation seeds"})
    values = rows["rmse-teacher"].double().numpy()
    better = {
        "influences_sha256": sha256,
        "metrics": result.metrics | {"rmse-teacher": float(values.mean())},
        "errors": result.errors | {"rmse-teacher": float(values.std(ddof=1) / np.sqrt(24))},
    }
    write_record(copy, result.model_copy(update=better))
    seal(copy)
    assert "The tableau is not the one that was measured" in refused(copy)


@pytest.mark.parametrize("solver", ["ddim", "gs"])
def test_another_table_is_found_by_the_re_run(copy: Path, solver: str) -> None:
    file = record_of(copy, solver).with_suffix(".safetensors")
    found = Tableau.load(file)
    A = found.A.clone()
    A[-1, -1] *= 1.001  # its third digit
    Tableau(A, found.tau, found.nodes, found.meta).save(file)
    seal(copy)
    said = "its formulas give another here" if solver == "ddim" else "RMSE-T of an image is off by"
    assert said in refused(copy)


def test_a_table_with_fewer_calls_than_were_counted_is_found(copy: Path) -> None:
    file = record_of(copy, "gs").with_suffix(".safetensors")
    found = Tableau.load(file)
    shorter = Tableau(found.A[:3, :3].contiguous(), found.tau[:2], found.nodes[:3], found.meta)
    shorter.save(file)
    seal(copy)
    assert "makes 2 network calls a sample; its record counted 3" in refused(copy)


def test_other_weights_than_those_that_ship_are_refused(copy: Path) -> None:
    result = read_record(record_of(copy, "ddim"))
    made = result.provenance.model_copy(update={"weights_sha256": "0" * 64})
    write_record(copy, result.model_copy(update={"provenance": made}))
    seal(copy)
    assert "made with weights 000000000000; those of digits that ship are" in refused(copy)


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("title", "GS [x](https://example.org)", "title holds a link or markup"),
        ("title", "<b>GS", "title holds a link or markup"),
        ("title", "GS /home/me/runs", "title names a place on a machine"),
        ("title", "GS C:\\Users\\me", "title names a place on a machine"),
        ("title", "GS\x1b[2J", "title is too long or cannot be printed"),
    ],
)
def test_links_and_places_of_a_machine_are_refused(
    copy: Path, field: str, text: str, said: str
) -> None:
    result = read_record(record_of(copy, "gs"))
    write_record(copy, result.model_copy(update={field: text}))
    seal(copy)
    assert said in refused(copy)


def test_submit_refuses_a_run_that_names_a_place_on_the_machine(
    packed: Path, tmp_path: Path
) -> None:
    shutil.copytree(packed.parents[3] / "run", tmp_path / "run")
    result = read_record(record_of(tmp_path / "run", "gs"))
    write_record(tmp_path / "run", result.model_copy(update={"title": "GS of ~/runs"}))
    done = cli("submit", tmp_path / "run", "--name", "a", "--contact", "me", "--out", tmp_path)
    assert done.exit_code == 2
    assert "title names a place on a machine: GS of ~/runs" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "contact", "url", "said"),
    [
        ("../up", "me", "", "name is '../up'; allowed are"),
        ("me", "", "", "neither contact nor url is given"),
        ("me", "", "http://example.org", "url is no plain https:// address"),
        ("me", "[x](y)", "", "contact takes up to 100 letters"),
    ],
)
def test_submit_says_what_a_name_and_a_contact_may_be(
    packed: Path, tmp_path: Path, name: str, contact: str, url: str, said: str
) -> None:
    words = ("--name", name, "--contact", contact, "--url", url, "--out", tmp_path / "out")
    done = cli("submit", packed.parents[3] / "run", *words)
    assert (done.exit_code, said in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_foreign_files_and_links_are_refused_before_anything_is_opened(copy: Path) -> None:
    (copy / "solver.pkl").write_bytes(b"\x80\x04.")
    assert refused(copy).endswith("solver.pkl has no place in a submission: records, tableaus, "
                                  "influences only")  # fmt: skip
    (copy / "solver.pkl").unlink()
    for target in ("/dev/zero", record_of(copy, "gs"), copy.parent):
        (copy / "nfe03-0123456789ab.json").symlink_to(target)
        assert refused(copy).endswith("is a link or a device; a submission holds plain files")
        (copy / "nfe03-0123456789ab.json").unlink()


def test_where_the_backbone_does_not_ship_a_gaussian_problem_is_sampled(
    packed: Path, tmp_path: Path, make: Callable[..., object]
) -> None:
    """It proves that the table samples; the line says that no number was run again."""
    shutil.copytree(packed, tmp_path / "x")
    found, _ = read_source(tmp_path / "x", "x")
    for one in found:
        spec = one.result.spec.model_copy(update={"backbone": Named(name="edm-cifar10")})
        object.__setattr__(one, "result", one.result.model_copy(update={"spec": spec}))
    done = list(rerun(found, 8))
    assert [one.passed for one in done] == [True, True]
    assert all("edm-cifar10 does not ship, so its numbers were not" in one.text for one in done)


def test_where_influences_were_not_kept_the_mean_is_compared(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "x")
    for solver, factor, passed in (("ddim", 1.0, True), ("gs", 3.0, False)):
        path = record_of(tmp_path / "x", solver)
        result = read_record(path)
        value = result.metrics["rmse-teacher"] * factor
        old = {"influences_sha256": "", "metrics": result.metrics | {"rmse-teacher": value}}
        write_record(tmp_path / "x", result.model_copy(update=old))
        own = [one for one in read_source(tmp_path / "x", "x")[0] if one.path == path]
        (done,) = rerun(own, 24)
        assert done.passed == passed
        assert ("recorded" in done.text) if passed else ("4 standard errors" in done.text)
