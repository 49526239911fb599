"""The script that compares ratios of benchmarks with the committed ones."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "regress.py"
MARGINS = runpy.run_path(str(SCRIPT))["MARGINS"]
STEP, MEMORY, SLOW = "b/test_a.py::test_quick_step", "b/test_a.py::test_quick_bytes", "b/c.py::slow"
BEFORE = {STEP: {"time": 1.02}, MEMORY: {"bytes": 3.5}, SLOW: {"time": 1.1}}


def written(path: Path, figures: dict[str, dict[str, float]], family: int = 26) -> Path:
    """A run as pytest-benchmark writes it, what is not read left out."""
    benchmarks: list[Any] = [
        {"fullname": name, "extra_info": {"figures": ratios}} for name, ratios in figures.items()
    ]
    benchmarks.append({"fullname": "b/test_a.py::test_without_figures", "extra_info": {}})
    cpu = {"vendor_id_raw": "AuthenticAMD", "family": family, "brand_raw": "a name"}
    machine = {"cpu": cpu, "torch": "2.13.0", "node": "a host"}
    run = {"machine_info": machine, "datetime": "2026-11-20T20:00:00", "benchmarks": benchmarks}
    path.write_text(json.dumps(run))
    return path


def called(*words: object) -> subprocess.CompletedProcess[str]:
    """The script by itself: it must need nothing of the package."""
    command = [sys.executable, "-I", str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    figures = written(tmp_path / "before.json", BEFORE)
    assert called(figures, "--update", "--baseline", path).returncode == 0
    return path


def compared(baseline: Path, change: dict[str, Any], *words: str) -> tuple[int, list[str]]:
    """Status and lines for the ratios of the baseline, some of them changed; None removes one."""
    figures = {name: value for name, value in (BEFORE | change).items() if value is not None}
    found = called(written(baseline.with_name("now.json"), figures), "--baseline", baseline, *words)
    return found.returncode, found.stdout.splitlines()


def test_equal_ratios_pass(baseline: Path) -> None:
    assert compared(baseline, {}) == (0, ["3 benchmarks are no worse than their baseline"])


@pytest.mark.parametrize("family", [25, 26])
def test_ratios_over_unlike_work_are_judged_on_the_processor_of_the_baseline_alone(
    tmp_path: Path, family: int
) -> None:
    path, names = tmp_path / "baseline.json", ("unlike", "time")
    before = written(tmp_path / "before.json", {SLOW: {"unlike": 2.0}, STEP: {"time": 1.0}})
    assert called(before, "--update", "--baseline", path).returncode == 0
    worse = written(tmp_path / "now.json", {SLOW: {"unlike": 4.0}, STEP: {"time": 2.0}}, family)
    found = called(worse, "--baseline", path)
    said = [name for name in names if f": {name} " in found.stdout]
    assert (found.returncode, said) == (1, list(names if family == 26 else names[1:]))
    assert ("not judged" in found.stderr) == (family == 25)


def test_an_update_on_another_processor_keeps_no_ratio_over_unlike_work(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    figures = {SLOW: {"unlike": 2.0}, STEP: {"time": 1.0}}
    assert (
        called(written(tmp_path / "a.json", figures), "--update", "--baseline", path).returncode
        == 0
    )
    other = written(tmp_path / "b.json", {MEMORY: {"bytes": 1.0}}, family=25)
    assert called(other, "--update", "--only", "bytes", "--baseline", path).returncode == 0
    assert json.loads(path.read_text())["figures"] == {MEMORY: {"bytes": 1.0}, STEP: {"time": 1.0}}


def test_an_improved_ratio_passes(baseline: Path) -> None:
    assert compared(baseline, {STEP: {"time": 0.7}, MEMORY: {"bytes": 1.0}})[0] == 0


@pytest.mark.parametrize(("name", "kind"), [(STEP, "time"), (MEMORY, "bytes")])
def test_a_ratio_may_worsen_by_its_margin_and_no_more(baseline: Path, name: str, kind: str) -> None:
    before, margin = BEFORE[name][kind], MARGINS[kind]
    within, beyond = before * (1 + 0.9 * margin), before * (1 + 1.1 * margin)
    assert compared(baseline, {name: {kind: within}})[0] == 0
    status, lines = compared(baseline, {name: {kind: beyond}})
    assert status == 1
    assert [line.split(": ")[0] for line in lines] == [name]


def test_each_worsened_figure_is_named(baseline: Path) -> None:
    status, lines = compared(baseline, {STEP: {"time": 2.0}, SLOW: {"time": 2.0}})
    assert status == 1
    assert [line.split(": ")[0] for line in lines] == [SLOW, STEP]


@pytest.mark.parametrize("without", [None, {}])
def test_a_missing_figure_fails(baseline: Path, without: object) -> None:
    status, lines = compared(baseline, {MEMORY: without})
    assert (status, lines) == (1, [f"{MEMORY}: no figure of kind bytes; the baseline has 3.5"])


def test_a_figure_that_is_no_number_fails(baseline: Path) -> None:
    assert compared(baseline, {STEP: {"time": float("nan")}})[0] == 1


def test_a_new_benchmark_passes(baseline: Path) -> None:
    assert compared(baseline, {"b/new.py::test": {"time": 9.0}})[0] == 0


def test_a_part_of_the_benchmarks_can_be_compared(baseline: Path) -> None:
    assert compared(baseline, {SLOW: None})[0] == 1
    assert compared(baseline, {SLOW: None}, "--only", "test_quick")[0] == 0
    assert compared(baseline, {}, "--only", "of no benchmark")[0] == 1


def test_an_unknown_kind_is_refused(baseline: Path) -> None:
    assert compared(baseline, {STEP: {"seconds": 1.0}})[0] == 1


def test_an_update_replaces_what_was_chosen_and_says_when_and_where(baseline: Path) -> None:
    figures = written(baseline.with_name("now.json"), {STEP: {"time": 1.5}, SLOW: {"time": 9.0}})
    words = "--only", "test_quick", "--update", "--baseline", baseline
    assert called(figures, *words).returncode == 0
    assert json.loads(baseline.read_text()) == {
        "date": "2026-11-20",
        "torch": "2.13.0",
        "processor": "AuthenticAMD family 26",
        "figures": {STEP: {"time": 1.5}, SLOW: {"time": 1.1}},
    }


def test_of_several_runs_the_median_counts(baseline: Path) -> None:
    ratios = (0.9, 1.03, 5.0)
    runs = [
        written(baseline.with_name(f"{i}.json"), BEFORE | {STEP: {"time": ratio}})
        for i, ratio in enumerate(ratios)
    ]
    assert called(*runs, "--baseline", baseline).returncode == 0
    assert called(runs[2], "--baseline", baseline).returncode == 1
    assert called(*runs, "--update", "--baseline", baseline).returncode == 0
    assert json.loads(baseline.read_text())["figures"][STEP] == {"time": 1.03}


def test_the_committed_baseline_holds_ratios_and_no_name_of_a_machine() -> None:
    held = json.loads(SCRIPT.with_name("baseline.json").read_text())
    assert held.keys() == {"date", "torch", "processor", "figures"}
    for ratios in held["figures"].values():
        assert ratios
        assert all(kind in MARGINS and 0 < value < 100 for kind, value in ratios.items())
