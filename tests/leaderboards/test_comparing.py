"""`solverbench compare`: differences of what belongs together, one line where nothing does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from solverbench.benchmark.outcome import write_influences
from solverbench.benchmark.results import OF_A_MEAN, OVER_ROWS, Result
from solverbench.benchmark.store import influence_path, record_path, write_record
from solverbench.cli_compare import compare as command
from solverbench.errors import SolverBenchError
from solverbench.leaderboards.comparing import compare
from tests.leaderboards.test_differences import noise, sure

Make = Callable[..., Result]


def stored(root: Path, result: Result, influence: np.ndarray | None = None) -> Path:
    """The file of a record, with its influences beside it."""
    if influence is not None:
        path = influence_path(record_path(root, result.spec))
        sha256 = write_influences(path, {"fd": torch.from_numpy(influence).float()})
        result = result.model_copy(update={"influences_sha256": sha256})
    return write_record(root, result)


@pytest.fixture
def pair(make: Make, tmp_path: Path) -> tuple[Path, Path]:
    """Two records whose values are 0.2 apart, errors 0.1, with paired error 0.01."""
    shared = noise(0, 0.1)
    a = stored(tmp_path, sure(make("gs", 4, {"fd": 1.0}), fd=0.1), shared)
    b = stored(tmp_path, sure(make("ddim", 4, {"fd": 1.2}), fd=0.1), shared + noise(1, 0.01))
    return a, b


def test_two_records_are_compared_image_by_image(pair: tuple[Path, Path]) -> None:
    (found,) = compare(*pair)
    (line,) = found.lines
    assert line.gap.paired
    assert line.gap.se == pytest.approx(0.01, rel=1e-4)  # influences are stored as float32
    assert (line.better, line.verdict) == ("A", "A better (paired)")
    text = "\n".join(found.text())
    assert "cifar16, NFE 4, 2000 images, seeds 50000 to 51999" in text
    assert "A: GS, gs, training seeds 0" in text
    assert "B: DDIM, ddim\n" in text
    assert "FD[cifar16] (lower is better)  1.00 ± 0.10  1.20 ± 0.10  -0.2 ± 0.01  A better" in text


def test_without_the_file_beside_a_record_the_test_is_unpaired(pair: tuple[Path, Path]) -> None:
    influence_path(pair[0]).unlink()
    (line,) = compare(*pair)[0].lines
    assert not line.gap.paired
    assert line.gap.se == pytest.approx(0.1 * 2**0.5)
    assert (line.better, line.verdict) == ("", "not told apart (unpaired)")


def test_a_damaged_or_foreign_file_beside_a_record_is_one_line(pair: tuple[Path, Path]) -> None:
    influence_path(pair[0]).write_bytes(influence_path(pair[1]).read_bytes())
    with pytest.raises(SolverBenchError, match="is damaged or of another run") as caught:
        compare(*pair)
    assert "\n" not in str(caught.value)


def test_older_records_have_a_difference_without_an_error(make: Make, tmp_path: Path) -> None:
    a = stored(tmp_path, make("gs", 4, {"fd": 1.0}))
    b = stored(tmp_path, make("ddim", 4, {"fd": 1.2}))
    (line,) = compare(a, b)[0].lines
    assert (line.gap.se, line.better, line.verdict) == (None, "", "no error recorded")


def test_folders_are_paired_by_nfe_and_solver(make: Make, tmp_path: Path) -> None:
    for folder, shift in (("a", 0.0), ("b", 1.0)):
        for solver, nfe in (("ddim", 4), ("ddim", 6), ("unipc-3", 4), ("gs", 4)):
            result = make(solver, nfe, {"fd": nfe + shift}, iterations=20 + int(shift))
            stored(tmp_path / folder, sure(result, fd=0.1))
    stored(tmp_path / "a", sure(make("gs", 8, {"fd": 1.0}), fd=0.1))
    found = compare(tmp_path / "a", tmp_path / "b")
    names = {(one.a[0].spec.solver.name, one.a[0].spec.nfe) for one in found}
    assert names == {("ddim", 4), ("ddim", 6), ("unipc-3", 4), ("gs", 4)}
    assert all(one.a[0].spec.solver == one.b[0].spec.solver for one in found)
    assert {one.lines[0].gap.difference for one in found} == {-1.0}


def test_training_seeds_of_a_folder_are_taken_together(make: Make, tmp_path: Path) -> None:
    for seed, fd in enumerate((0.8, 1.0, 1.2)):
        stored(tmp_path / "a", make("gs", 4, {"fd": fd}, seed=seed))
    stored(tmp_path / "b", make("ddim", 4, {"fd": 2.0}))
    ((line,),) = (one.lines for one in compare(tmp_path / "a", tmp_path / "b"))
    assert line.a.num == 3
    assert line.gap.se == pytest.approx(0.2 / 3**0.5)
    assert line.gap.level == pytest.approx(4.3027)  # two degrees of freedom
    assert (line.better, line.verdict) == ("A", "A better (unpaired, beyond 4.30 errors)")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda data: data["metric_facts"].pop("fd"), "metric_facts.fd: missing"),
        (lambda data: data["errors"].update(fd=-1.0), "errors.fd: must be at least 0"),
        (
            lambda data: data["errors"].update(fd=float("nan")),
            "errors.fd: Input should be a finite",
        ),
        (
            lambda data: data["metrics"].update(fd=float("inf")),
            "metrics.fd: Input should be a finite",
        ),
        (lambda data: data["errors"].update(fdd=1.0), "errors.fdd: metrics has no fdd"),
        (lambda data: data["errors"].update(fd=0.101), "error of fd is 0.101, that of .* 0.1"),
        (lambda data: data["metric_facts"]["fd"].update(num_generated=399), "fd of 399 rows"),
    ],
)
def test_records_that_were_edited_are_refused_in_one_line(
    pair: tuple[Path, Path], change: Callable[[dict[str, Any]], object], line: str
) -> None:
    data = json.loads(pair[0].read_text())
    change(data)
    pair[0].write_text(json.dumps(data))
    with pytest.raises(SolverBenchError, match=line) as caught:
        compare(*pair)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [OF_A_MEAN, OVER_ROWS])
def test_a_mean_over_images_must_be_that_of_its_influences(
    make: Make, tmp_path: Path, method: str
) -> None:
    values = noise(0, 0.1)
    made = sure(make("gs", 4, {"fd": float(values.mean())}), fd=0.1)
    facts = made.metric_facts["fd"].model_copy(update={"se_method": method})
    made = made.model_copy(update={"metric_facts": {"fd": facts}})
    a, b = (
        stored(tmp_path, made, values),
        stored(tmp_path, sure(make("ddim", 4, {"fd": 1.0}), fd=1)),
    )
    assert compare(a, b)
    data = json.loads(a.read_text())
    data["metrics"]["fd"] += 0.01
    a.write_text(json.dumps(data))
    with pytest.raises(SolverBenchError, match="the mean over images"):
        compare(a, b)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"num_images": 500}, "number of images 2000 and 500"),
        ({"version": 2}, "protocol 1 and 2"),
    ],
)
def test_records_of_other_evaluations_are_refused(
    make: Make, tmp_path: Path, change: dict[str, int], line: str
) -> None:
    a = stored(tmp_path, sure(make("gs", 4, {"fd": 1.0}), fd=0.1))
    b = stored(tmp_path, sure(make("ddim", 4, {"fd": 1.2}, **change), fd=0.1))
    with pytest.raises(SolverBenchError, match=f"measured otherwise: {line}") as caught:
        compare(a, b)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"extractor": "digits"}, "extractor cifar16 .* and digits"),
        ({"extractor_sha256": "f" * 64}, "extractor .*ffff"),
        ({"quantisation": "adm"}, "extraction .*edm and .*adm"),
    ],
)
def test_other_extractors_are_refused(
    make: Make, tmp_path: Path, changed: dict[str, str], line: str
) -> None:
    a = sure(make("gs", 4, {"fd": 1.0}), fd=0.1)
    b = sure(make("ddim", 4, {"fd": 1.2}), fd=0.1)
    assert b.measurement is not None
    b = b.model_copy(update={"measurement": b.measurement.model_copy(update=changed)})
    with pytest.raises(SolverBenchError, match=line):
        compare(stored(tmp_path, a), stored(tmp_path, b))


def test_another_first_seed_or_reference_is_refused(make: Make, tmp_path: Path) -> None:
    a, b = make("gs", 4, {"fd": 1.0}), make("ddim", 4, {"fd": 1.2})
    evaluation = b.spec.evaluation.model_copy(update={"first_seed": 60_000})
    seeds = b.model_copy(update={"spec": b.spec.model_copy(update={"evaluation": evaluation})})
    made = b.provenance.model_copy(update={"reference_sha256": "c" * 64})
    for other, line in (
        (seeds, "first seed 50000 and 60000"),
        (b.model_copy(update={"provenance": made}), "reference none and cccc"),
    ):
        with pytest.raises(SolverBenchError, match=line):
            compare(stored(tmp_path / "a", a), stored(tmp_path / line[:5], other))


def test_what_does_not_belong_together_is_one_line(make: Make, tmp_path: Path) -> None:
    a = stored(tmp_path / "a", make("gs", 4, {"fd": 1.0}))
    b = stored(tmp_path / "b", make("gs", 6, {"fd": 1.0}))
    for solver in ("ddim", "unipc-3"):
        stored(tmp_path / "d", make(solver, 4, {"fd": 1.0}))
    bad = stored(tmp_path / "c", make("gs", 4, reason="loss is not finite"))
    for other, line in (
        (b, "nothing to compare: .* has cifar16 NFE 4, .* has cifar16 NFE 6"),
        (tmp_path / "d", "hold several solvers, of which none is the same"),
        (bad, "failed: loss is not finite"),
        (tmp_path / "nowhere.json", "cannot read"),
    ):
        with pytest.raises(SolverBenchError, match=line) as caught:
            compare(a, other)
        assert "\n" not in str(caught.value)


def test_the_command_prints_text_or_json(pair: tuple[Path, Path]) -> None:
    names = [str(path) for path in pair]
    text = CliRunner().invoke(command, names)
    assert text.exit_code == 0
    assert "A better (paired)" in text.output
    found = json.loads(CliRunner().invoke(command, [*names, "--json"]).output)
    (metric,) = found[0]["metrics"]
    assert (metric["difference"], metric["better"]) == (pytest.approx(-0.2), "A")
    assert metric["paired"] is metric["significant"] is True
    assert found[0]["a"] != found[0]["b"]
