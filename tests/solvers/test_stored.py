"""A stored table is sampled as it stands, and only where it fits."""

from pathlib import Path

import pytest
import torch

from solverbench.backbones.gaussian import Gaussian
from solverbench.errors import SolverBenchError
from solverbench.solvers import Tableau, sample
from solverbench.solvers.base import Setting
from solverbench.solvers.gs import GS
from solverbench.solvers.heun import Heun
from solverbench.solvers.stored import Stored
from solverbench.solvers.tableau import integrate, trace
from tests.problems import bound


def stored(problem: Gaussian, path: Path, nfe: int = 4) -> Stored:
    return Stored(Setting(problem.schedule, nfe, problem.output), tableau=str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return bound(GS, Gaussian(), 4).tableau().detach().save(tmp_path / "gs.safetensors")


def test_a_stored_solver_has_the_numbers_of_its_file(path: Path) -> None:
    table, file = stored(Gaussian(), path).tableau(), Tableau.load(path)
    assert torch.equal(table.A, file.A)
    assert torch.equal(table.tau, file.tau)
    assert torch.equal(table.nodes, file.nodes)


def test_its_formulas_are_its_table(path: Path) -> None:
    """Rounding of one product a row: 1e-15 of numbers of about 1."""
    problem = Gaussian()
    solver = stored(problem, path)
    torch.testing.assert_close(trace(solver).A, solver.tableau().A, rtol=1e-12, atol=1e-14)
    z = problem.noise(range(3)).double()
    with torch.no_grad():
        ours, table = integrate(solver, problem, z), sample(problem, solver.tableau(), z)
    torch.testing.assert_close(ours, table, rtol=1e-10, atol=1e-12)


def test_solvers_with_several_calls_a_step_are_stored_too(tmp_path: Path) -> None:
    problem = Gaussian()
    file = bound(Heun, problem, 5).tableau().detach().save(tmp_path / "h.safetensors")
    assert torch.equal(stored(problem, file, 5).tableau().A, Tableau.load(file).A)
    assert trace(stored(problem, file, 5)).nfe == 5


def test_a_record_will_say_which_file_and_of_which_solver(path: Path) -> None:
    solver = stored(Gaussian(), path)
    said = solver.tableau().meta["options"]
    assert said["of"] == "GS"
    assert len(said["sha256"]) == 64
    assert said["trained_on"] == "unknown"
    assert "GS" in solver.title


def test_another_nfe_or_frame_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="was made for nfe 4, not 5"):
        stored(Gaussian(), path, 5)
    with pytest.raises(ValueError, match="was made for frame"):
        stored(Gaussian(frame="ve"), path)
    with pytest.raises(ValueError, match="was made for output x0, not eps"):
        stored(Gaussian(output="eps"), path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SolverBenchError, match=r"none\.safetensors"):
        stored(Gaussian(), tmp_path / "none.safetensors")
