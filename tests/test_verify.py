import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from solverbench import verifying
from solverbench.benchmark import metrics as m
from solverbench.cli_verify import verify
from solverbench.errors import SolverBenchError


@pytest.fixture
def goldens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the golden numbers that may be spoilt."""
    folder = tmp_path / "goldens"
    shutil.copytree(verifying.GOLDENS, folder)
    monkeypatch.setattr(verifying, "GOLDENS", folder)
    verifying.arrays.cache_clear()
    verifying.vectors.cache_clear()
    yield folder
    verifying.arrays.cache_clear()
    verifying.vectors.cache_clear()


def test_every_check_passes_here_and_none_is_empty() -> None:
    found = list(verifying.verify())
    assert [(f.what, f.worst, f.error) for f in found if not f.passed] == []
    cases = {f.what: f.cases for f in found}
    assert cases["Frechet distance"] == 2 * 9
    assert cases["neighbours: counts"] == 2 * (9 + 9) * 2  # k, sets and conventions, types
    assert cases["KID of subsets"] == 2 * 9
    assert cases["LPIPS: preparation"] == 2
    runs = verifying.vectors()["runs"]
    solved = sum(n for what, n in cases.items() if what.startswith("solver "))
    assert solved == sum(map(len, runs.values())) + cases["solver gs, untrained"]


def test_the_command_prints_a_line_a_check_and_ends_well() -> None:
    done = CliRunner().invoke(verify)
    *lines, last = done.output.splitlines()
    assert done.exit_code == 0
    assert len(lines) == len(verifying.checks())
    assert all(line.startswith("ok   ") and "allowed" in line for line in lines)
    assert last.endswith("all within what is allowed")


def test_the_json_document_holds_every_error_in_full() -> None:
    done = CliRunner().invoke(verify, "--json")
    found = json.loads(done.stdout)
    assert found["failed"] == 0
    assert {row["passed"] for row in found["checks"]} == {True}
    assert {"what", "cases", "error", "tolerance", "unit", "worst"} < set(found["checks"][0])


def test_a_solver_that_is_off_is_named_with_its_worst_case_and_ends_with_1(goldens: Path) -> None:
    file = goldens / "solvers.json"
    data = json.loads(file.read_text())
    data["runs"]["vp/logsnr/4"]["unipc_2_bh1"][2] += 1e-6
    file.write_text(json.dumps(data))
    done = CliRunner().invoke(verify)
    assert done.exit_code == 1
    (line,) = (line for line in done.output.splitlines() if line.startswith("FAIL"))
    assert "solver unipc-2" in line
    assert line.endswith("worst: vp/logsnr/4, unipc_2_bh1")
    assert "1 failed" in done.output


def test_a_count_that_is_off_by_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    true = m.precision_recall

    def off(**sides: object) -> object:
        found = true(**sides)
        return type(found)(**{**vars(found), "n_recall": found.n_recall + 1})

    monkeypatch.setattr(m, "precision_recall", off)
    worst = max(error for _, error in verifying.counts("cpu"))
    assert worst == 1


@pytest.mark.parametrize(
    ("errors", "passed"),
    [
        ([("a", 0.5), ("b", 1.0)], True),
        ([("a", 0.5), ("b", 1.1)], False),
        ([("a", math.nan), ("b", 0.5)], False),
        ([], False),
    ],
)
def test_a_check_passes_with_cases_that_are_all_near_enough(
    monkeypatch: pytest.MonkeyPatch, errors: list[tuple[str, float]], passed: bool
) -> None:
    check = verifying.Check("what", lambda: iter(errors), 1.0, "of one")
    monkeypatch.setattr(verifying, "checks", lambda: [check])
    (found,) = verifying.verify()
    assert found.passed == passed


@pytest.mark.parametrize("name", ["solvers.json", "metrics/quantise.npz"])
@pytest.mark.parametrize("spoil", [Path.unlink, lambda p: p.write_bytes(b"torn")])
def test_missing_and_torn_goldens_are_one_line(goldens: Path, name: str, spoil) -> None:
    spoil(goldens / name)
    with pytest.raises(SolverBenchError, match=r"cannot be read; reinstall solverbench$"):
        list(verifying.verify())


def test_sets_of_numbers_are_all_there(goldens: Path) -> None:
    """A folder without sets must not pass for want of cases."""
    for path in (goldens / "metrics").glob("*.npz"):
        if path.stem not in ("quantise", "resize_tf1"):
            path.unlink()
    failed = [f.what for f in verifying.verify() if not f.passed]
    assert "Frechet distance" in failed
    assert "MIND" in failed


def test_goldens_are_small_and_hold_no_pickle() -> None:
    files = [p for p in verifying.GOLDENS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 600_000
    assert {p.suffix for p in files} == {".npz", ".json", ".md"}
    assert all(torch.is_tensor(v) for v in verifying.arrays("gs_zero").values())
