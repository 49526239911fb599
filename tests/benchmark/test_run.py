import json
from pathlib import Path

import pytest
import torch

from solverbench import registry, tensorfile
from solverbench.backbones.embedded import Embedded
from solverbench.benchmark.metrics.frechet import FD
from solverbench.benchmark.run import Run, fit_seeds
from solverbench.benchmark.sampling import FORMAT
from solverbench.benchmark.spec import FIRST_EVALUATION_SEED, FitSpec
from solverbench.benchmark.store import StoredInfluences, influence_path, read_record
from solverbench.errors import SolverBenchError
from solverbench.solvers.tableau import Tableau
from tests.benchmark.cells import FIT, TEACHER, cell

METRICS = ("fd", "fd-teacher", "fd-texture", "precision", "recall", "rmse-teacher")
LEARNED = cell("gs", fit=FIT, metrics=METRICS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record of one learned cell."""
    folder = tmp_path_factory.mktemp("runs")
    Run(LEARNED, folder).execute()
    return folder


def test_the_record_is_complete_and_is_what_lies_on_disk(root: Path) -> None:
    result = read_record(Run(LEARNED, root).path)
    assert (result.status, result.reason, result.spec) == ("ok", "", LEARNED)
    assert set(result.metrics) == set(result.metric_facts) == set(METRICS)
    assert result.metric_facts["fd"].label == "FD[digits]"
    assert result.cost is not None
    assert (result.cost.nfe, result.cost.network_rows) == (4, 4.0)
    assert (result.cost.fit_iterations, result.cost.num_parameters) == (6, 27)
    assert result.cost.fit_seconds > 0
    assert result.cost.seconds_per_image > 0
    assert result.conventions["t_min"] == pytest.approx(1e-3, rel=1e-12)  # float64
    assert result.provenance.weights_sha256
    assert result.provenance.reference_sha256


def test_the_solver_and_its_curves_lie_beside_the_record_and_scratch_is_gone(root: Path) -> None:
    run = Run(LEARNED, root)
    tableau = Tableau.load(run.tableau_path)
    assert tableau.nfe == 4
    assert tableau.meta["trained"]["fit"] == FIT.model_dump(mode="json")
    curves = [
        json.loads(row) for row in run.path.with_suffix(".fit.jsonl").read_text().splitlines()
    ]
    assert [row["iteration"] for row in curves] == [0, 1, 2, 3, 4, 5, 6]  # 0: untrained
    assert [row["iteration"] for row in curves if "validation" in row] == [0, 1, 3, 6]
    assert not run.work.exists()
    assert [p for p in root.rglob("*") if p.name.startswith(".")] == []


def test_scratch_of_a_run_killed_after_its_record_was_written_goes(root: Path) -> None:
    run = Run(LEARNED, root)
    run.work.mkdir()
    (run.work / "fit.safetensors").write_bytes(b"left over")
    run.execute()
    assert not run.work.exists()


def test_a_finished_cell_is_read_and_not_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> torch.Tensor:
        raise AssertionError("the network was called")

    monkeypatch.setattr(Embedded, "raw", refuse)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    result = Run(LEARNED, root).execute()
    assert result == read_record(Run(LEARNED, root).path)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_errors_are_recorded_and_influences_lie_beside_the_record(root: Path) -> None:
    """40 images of 64 features: no error of the Frechet distances of embeddings, a flag says so."""
    run = Run(LEARNED, root)
    result, influences = read_record(run.path), StoredInfluences(root)
    assert set(result.errors) == {"precision", "recall", "rmse-teacher"}
    assert "no_se_few_rows" in result.metric_facts["fd"].flags
    assert influences(result, "fd") is None
    for name, error in result.errors.items():
        row = influences(result, name)
        assert row is not None
        assert row.shape == (40,)
        own = row.astype("float64").std(ddof=1) / 40**0.5
        assert own == pytest.approx(error, rel=1e-6)  # float32 in the file
    facts = result.metric_facts["recall"]
    assert (facts.num_generated, facts.num_reference, facts.facts["k"]) == (40, 40, 5)
    made = result.measurement
    assert made is not None
    assert (made.extractor, made.image_size, made.quantisation) == ("digits", (8, 8), "edm")
    assert made.extractor_sha256
    assert made.seconds > 0


def test_a_record_without_its_influences_stands_and_has_no_paired_test(
    root: Path, tmp_path: Path
) -> None:
    run = Run(cell(metrics=("fd", "rmse-teacher")), tmp_path)
    result = run.execute()
    assert StoredInfluences(run.path)(result, "rmse-teacher") is not None
    influence_path(run.path).unlink()
    assert run.done() == result
    assert StoredInfluences(run.path)(result, "rmse-teacher") is None
    assert StoredInfluences(tmp_path)(result, "rmse-teacher") is None


def test_metrics_that_cannot_run_here_are_refused_before_sampling(tmp_path: Path) -> None:
    class Absent(FD):
        def prepare(self) -> None:
            raise SolverBenchError("its weights are not here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.metrics, "get", lambda name: Absent)
        with pytest.raises(SolverBenchError, match="its weights are not here"):
            Run(cell(), tmp_path).execute()
    assert list(tmp_path.iterdir()) == []


def test_two_folders_get_the_same_metrics_bit_for_bit(root: Path, tmp_path: Path) -> None:
    again, first = Run(LEARNED, tmp_path).execute(), read_record(Run(LEARNED, root).path)
    assert again.metrics == first.metrics
    assert again.errors == first.errors
    assert again.influences_sha256 == first.influences_sha256
    assert again.conventions == first.conventions


def test_another_training_seed_gives_another_solver_on_the_same_teacher(root: Path) -> None:
    teachers = {p: p.stat().st_mtime_ns for p in (root / "teachers").rglob("*.safetensors")}
    other = Run(LEARNED.model_copy(update={"seed": 1}), root).execute()
    assert other.metrics != read_record(Run(LEARNED, root).path).metrics
    after = {p: p.stat().st_mtime_ns for p in (root / "teachers").rglob("*.safetensors")}
    assert after == teachers


def test_seeds_of_training_validation_and_evaluation_on_disk_are_disjoint(root: Path) -> None:
    parts = []
    for folder in (root / "teachers").iterdir():
        seeds: set[int] = set()
        for block in folder.glob("*.safetensors"):
            num = len(tensorfile.read(block, FORMAT)[0]["states"])
            seeds |= set(range(int(block.stem), int(block.stem) + num))
        parts.append(seeds)
    assert sorted(len(p) for p in parts) == [8, 16, 40]
    assert len(set.union(*parts)) == 8 + 16 + 40


@pytest.mark.parametrize(("train", "validation"), [(1400, 1000), (1, 1), (49_000, 1000)])
def test_seeds_are_disjoint_at_any_size(train: int, validation: int) -> None:
    fit = FitSpec(train_size=train, validation_size=validation, batch=1)
    a, b = fit_seeds(cell("gs", fit=fit))
    assert (len(a), len(b)) == (train, validation)
    assert a[-1] < b[0]
    assert b[-1] < FIRST_EVALUATION_SEED


def test_more_teacher_seeds_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 50000 seeds lie below those of evaluation"):
        FitSpec(train_size=49_001, validation_size=1000)


def test_the_teacher_is_a_row_of_its_own_without_a_distance_to_itself(root: Path) -> None:
    spec = LEARNED.model_copy(update={"solver": TEACHER.solver, "nfe": 6, "fit": None})
    result = Run(spec, root).execute()
    assert result.status == "ok"
    assert set(result.metrics) == {"fd", "fd-texture", "precision", "recall"}
    assert result.cost is not None
    assert result.cost.nfe == 6


def test_a_damaged_teacher_block_is_one_line_that_names_the_file(
    root: Path, tmp_path: Path
) -> None:
    run = Run(cell(metrics=("rmse-teacher",)), tmp_path)
    run.prepare("evaluation")
    (block,) = (tmp_path / "teachers").rglob("*.safetensors")
    data = bytearray(block.read_bytes())
    data[-1] ^= 1
    block.write_bytes(data)
    result = run.execute()
    assert result.status == "failed"
    assert str(block) in result.reason
    assert "damaged" in result.reason
    assert "\n" not in result.reason
    assert read_record(run.path) == result
    block.unlink()  # what the line asks for
    assert run.execute().status == "ok"


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (cell("gs"), "solver gs needs a fit budget"),
        (cell("ddim", fit=FIT), "solver ddim cannot use a fit budget"),
        (cell("heun"), "heun needs an odd nfe .* Use 3 or 5"),
        (cell(metrics=("fid",)), "unknown metric 'fid'; did you mean 'fd'"),
        (cell(num_images=1), "num_images is 1; metrics need at least 2"),
        (cell("ddim", options={"order": 3}), "solver ddim has no option 'order'; it has: schedule"),
        (
            cell("gs", fit=FIT.model_copy(update={"distance": "lpps"})),
            "unknown distance 'lpps'; did you mean 'lpips'",
        ),
    ],
)
def test_a_spec_that_cannot_work_is_refused_before_anything_is_written(
    spec: object, line: str, tmp_path: Path
) -> None:
    with pytest.raises(SolverBenchError, match=line):
        Run(spec, tmp_path).execute()  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
