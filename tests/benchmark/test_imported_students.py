"""Import of the paper's students, against the reference's own numbers."""

import io
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from solverbench.benchmark.importing.student import (
    Student,
    import_student,
    read_checkpoint,
    read_student,
)
from solverbench.cli import main
from solverbench.errors import SolverBenchError
from solverbench.solvers import sample
from solverbench.sources import Source
from tests.benchmark.artefacts import (
    Change,
    changed,
    checkpoint,
    names_of,
    shadows,
    trained,
    without,
    write,
)
from tests.problems import Problem, edm, gap, golden, latent


def golden_student(prefix: str) -> list[Tensor]:
    data = golden("gs_random")
    return shadows(*(data[f"{prefix}__{key}"] for key in ("mu_logit", "xi", "c", "a")))


def known(prefix: str) -> Any:
    name = prefix.split("_")[0]
    return edm() if name == "edm" else latent(name)


PREFIXES = [k.removesuffix("__final") for k in golden("gs_random") if k.endswith("__final")]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_imported_student_samples_what_the_reference_samples(
    prefix: str, tmp_path: Path
) -> None:
    """1e-9, the tolerance of the goldens; float64 parameters, whole and cut histories."""
    problem: Problem = known(prefix)
    path = write(tmp_path / "student.pt", checkpoint(golden_student(prefix)), "torch")
    tableau = import_student(path, problem, tmp_path / "s.safetensors", Student())  # type: ignore[arg-type]
    final = sample(problem, tableau, problem.noise, problem.condition)
    assert gap(final, golden("gs_random")[f"{prefix}__final"]) < 1e-9


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_the_parameters_are_those_of_the_file_bit_for_bit(
    weights: str, form: str, tmp_path: Path
) -> None:
    averages, raw = ([v.float() for v in trained(part)] for part in ("ema", "final"))
    path = write(tmp_path / "gs.pt", checkpoint(averages, raw), form)
    out = tmp_path / "s.safetensors"
    tableau = import_student(path, edm(), out, Student(nfe=3, t_min=1e-3, weights=weights))  # type: ignore[arg-type]
    solver = read_student(out, edm())  # type: ignore[arg-type]
    theta, xi, *rows = averages if weights == "ema" else raw
    wanted = {"theta": theta, "xi": xi, "c": torch.stack(rows[::2]), "a": torch.stack(rows[1::2])}
    for name, parameter in solver.named_parameters():
        assert torch.equal(parameter.detach(), wanted[name].double())
        assert torch.equal(parameter.detach().float(), wanted[name])
    facts = tableau.meta["imported"]
    assert (facts["weights"], facts["step"], facts["ema_updates"]) == (weights, 50, 50)
    assert (facts["dtype"], len(facts["sha256"]), facts["file"]) == ("float32", 64, "gs.pt")
    assert tableau.meta["title"] == "GS"


def test_a_prefix_of_the_names_and_other_tensors_of_the_model_are_no_matter(
    tmp_path: Path,
) -> None:
    found = checkpoint(trained("ema"), trained("final"))
    found["model"] = OrderedDict({f"solver.{k}": v for k, v in found["model"].items()})
    found["model"]["solver.betas"] = torch.ones(5)
    path = write(tmp_path / "gs.pt", found, "torch")
    student = Student(solver="gas", weights="raw")
    tableau = import_student(path, edm(), tmp_path / "s.safetensors", student)  # type: ignore[arg-type]
    assert tableau.meta["title"] == "GAS"


def _shadow(edit: Callable[[list[Tensor]], list[Tensor]]) -> Change:
    def change(found: dict[str, Any]) -> dict[str, Any]:
        found["ema"]["shadow_params"] = edit(list(found["ema"]["shadow_params"]))
        return found

    return change


def _order(*places: int) -> Change:
    return _shadow(lambda values: [values[i] for i in places])


def _at(place: int, value: Tensor) -> Change:
    return _shadow(lambda values: [*values[:place], value, *values[place + 1 :]])


def _renamed(found: dict[str, Any]) -> dict[str, Any]:
    names = names_of(8)
    names[2], names[3] = names[3], names[2]
    return found | {"model": OrderedDict(zip(names, found["model"].values(), strict=True))}


STUDENTS: dict[str, tuple[Change, str]] = {
    "theta and xi": (_order(1, 0, 2, 3, 4, 5, 6, 7), "sizes"),
    "all c, then all a": (_order(0, 1, 2, 4, 6, 3, 5, 7), "before there is such a past"),
    "last lag first": (_order(0, 1, 6, 7, 4, 5, 2, 3), "before there is such a past"),
    "a before c": (_order(0, 1, 3, 2, 5, 4, 7, 6), "c1_diff and a1_diff stand in a wrong order"),
    "names": (_renamed, "wrong order .mu_logit, t_couple, a1_diff"),
    "too short": (_order(0, 1, 2, 3, 4, 5), "stand in a wrong order"),
    "odd": (_order(0, 1, 2, 3, 4, 5, 6), "7 tensors; a student of K lags has 2"),
    "other N": (_at(0, torch.zeros(3)), "N - 1 and then N each"),
    "too many lags": (
        _shadow(lambda v: v + [torch.zeros(3, dtype=torch.float64)] * 2),
        "4 lags for 3 steps",
    ),
    "nan": (_at(1, torch.full((3,), torch.nan)), "not all finite"),
    "integers": (_at(1, torch.zeros(3).long()), "must hold torch.float32"),
    "a table": (_at(2, torch.zeros(3, 3)), "no row of numbers"),
    "two types": (_at(1, torch.zeros(3)), "several types"),
    "no list": (changed(ema={"shadow_params": None}), "no list shadow_params"),
    "no ema": (without("ema"), "lacks ema; a student has ema, model, step"),
    "an endless step": (changed(step=float("inf")), "its step is inf; it must be a whole number"),
    "no step": (changed(step=None), "its step is None"),
    "a step below 0": (changed(step=-1), "its step is another; it must be a whole number from 0"),
    "a truth": (changed(step=True), "its step is True"),
    "a huge step": (changed(step=10**12), "from 0 to 1,000,000,000"),
    "negative times": (_at(1, torch.full((3,), -2.0, dtype=torch.float64)), "at or below 0"),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_wrong_student_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    change, why = STUDENTS[name]
    found = change(checkpoint(trained("ema"), trained("final")))
    path = write(tmp_path / "gs.pt", found, "torch")
    with pytest.raises(SolverBenchError, match=why) as caught:
        import_student(path, edm(), tmp_path / "s.safetensors", Student())  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s.safetensors").exists()


def test_what_of_the_order_was_checked_is_kept(tmp_path: Path) -> None:
    """Without names two of the four checks have nothing to look at."""
    found = checkpoint(trained("ema"), trained("final"))
    other = OrderedDict({f"x{i}": v for i, v in enumerate(found["model"].values())})
    for model, checks in ((found["model"], 4), (other, 2), ({}, 2)):
        path = write(tmp_path / "gs.pt", found | {"model": model}, "torch")
        tableau = import_student(path, edm(), tmp_path / "s.safetensors", Student())  # type: ignore[arg-type]
        assert tableau.meta["imported"]["order_checks"] == checks


def test_a_place_that_no_file_can_have_is_refused_before_the_checkpoint_is_read(
    tmp_path: Path,
) -> None:
    for out in (Path(), tmp_path, Path("/"), tmp_path / ".."):
        with pytest.raises(SolverBenchError, match="is a folder; --out names a tableau file"):
            import_student(tmp_path / "gs.pt", edm(), out, Student())  # type: ignore[arg-type]
    with pytest.raises(SolverBenchError, match="File name too long"):
        import_student(tmp_path / "gs.pt", edm(), Path("x" * 5000), Student())  # type: ignore[arg-type]


def test_the_command_says_how_much_of_the_order_was_checked(tmp_path: Path) -> None:
    found = checkpoint(trained("ema"), trained("final"))
    backbone = ["--backbone", "gaussian", "--out", str(tmp_path / "s.safetensors")]
    for model, said in ((found["model"], "4 of 4 checks"), ({}, "2 of 4 checks of the order")):
        path = write(tmp_path / "gs.pt", found | {"model": model}, "torch")
        done = CliRunner().invoke(main, ["import", "student", str(path), *backbone])
        assert done.exit_code == 0, done.output
        assert said in done.output
        assert "step 50" in done.output


def test_lags_in_the_order_of_early_training_are_not_taken_for_exchanged() -> None:
    """At any point of a run the right order passes: averages of the reference's two runs."""
    for run in ("gs_l2", "gs_latent_l1"):
        data, keys = golden("train_gs"), ("mu_logit", "xi", "c", "a")
        averages, raw = (
            shadows(*(data[f"{run}__{part}_{key}"] for key in keys)) for part in ("ema", "final")
        )
        file = io.BytesIO()
        torch.save(checkpoint(averages, raw), file)
        assert read_checkpoint(Source(file)).nfe == len(raw[1])


@pytest.mark.parametrize(
    ("student", "why"),
    [
        (Student(nfe=4), "a student of 3 steps, not of 4"),
        (Student(solver="ddim"), "allowed: gs, gas, s4s-pc-gas"),
        (Student(t_min=2.0), "t_min"),
        (Student(t_min=1e-9), "the tableau ends at"),
    ],
)
def test_choices_that_do_not_fit_a_student_are_refused(
    student: Student, why: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "gs.pt", checkpoint(trained("ema")), "torch")
    with pytest.raises(SolverBenchError, match=why):
        import_student(path, edm(), tmp_path / "s.safetensors", student)  # type: ignore[arg-type]


def test_a_student_changed_after_its_import_is_refused(tmp_path: Path) -> None:
    path, out = write(tmp_path / "gs.pt", checkpoint(trained("ema")), "torch"), tmp_path / "s"
    problem: Any = edm()
    tableau = import_student(path, problem, out, Student())
    moved = tableau.A.clone()
    moved[1, 0] *= 1 + 1e-9
    replace(tableau, A=moved).save(out)
    with pytest.raises(SolverBenchError, match="does not follow from its parameters"):
        read_student(out, problem)
    meta = json.loads(json.dumps(tableau.meta))
    meta["trained"]["parameters"]["xi"][0] += 1e-16
    replace(tableau, meta=meta).save(out)
    with pytest.raises(SolverBenchError, match="not those that were imported"):
        read_student(out, problem)
    replace(tableau, meta={}).save(out)
    with pytest.raises(SolverBenchError, match="is no imported student"):
        read_student(out, problem)
