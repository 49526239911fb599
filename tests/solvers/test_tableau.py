"""Tableaux as files, and what the sampler refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from solverbench.backbones.gaussian import Gaussian
from solverbench.errors import SolverBenchError
from solverbench.schedule import TimeGrid
from solverbench.solvers import Network, Solver, State, Tableau, sample
from solverbench.solvers.dpmpp import DPMpp3M
from solverbench.solvers.gs import GS
from tests.problems import bound


def made(problem: Gaussian, nfe: int = 4) -> Tableau:
    return bound(DPMpp3M, problem, nfe).tableau()


def test_saved_tableau_comes_back_unchanged(tmp_path: Path) -> None:
    tableau = made(Gaussian())
    loaded = Tableau.load(tableau.save(tmp_path / "deep" / "solver.safetensors"))
    for key in ("A", "tau", "nodes"):
        assert torch.equal(getattr(loaded, key), getattr(tableau, key))
    assert loaded.meta == json.loads(json.dumps(tableau.meta))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["solver.safetensors"]


def test_loaded_tableau_samples_the_same_bits(tmp_path: Path) -> None:
    problem = Gaussian()
    tableau, z = bound(GS, problem, 4).tableau(), problem.noise(range(2))
    loaded = Tableau.load(tableau.save(tmp_path / "gs.safetensors"))
    with torch.no_grad():
        assert torch.equal(sample(problem, loaded, z), sample(problem, tableau, z))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SolverBenchError, match=r"nothing\.safetensors .*solverbench-tableau-1"):
        Tableau.load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -8])
def test_torn_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = made(Gaussian()).save(tmp_path / "t.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SolverBenchError, match=r"t\.safetensors .*solverbench-tableau-1"):
        Tableau.load(path)


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(SolverBenchError, match="is no solverbench-tableau-1 file"):
        Tableau.load(path)


def rewritten(path: Path, tensors: dict[str, Tensor] | None = None, **head: str) -> Path:
    made(Gaussian()).save(path)
    with safe_open(path, "pt") as file:
        kept = {key: file.get_tensor(key) for key in ("A", "tau", "nodes")}
        metadata = file.metadata()
    save_file({**kept, **(tensors or {})}, path, {**metadata, **head})
    return path


def test_other_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SolverBenchError, match="has layout solverbench-tableau-99"):
        Tableau.load(rewritten(tmp_path / "t.safetensors", format="solverbench-tableau-99"))


def test_changed_number_or_word_is_refused(tmp_path: Path) -> None:
    changed = {"tau": made(Gaussian()).tau + 1e-9}
    with pytest.raises(SolverBenchError, match="its checksum does not fit"):
        Tableau.load(rewritten(tmp_path / "t.safetensors", changed))
    with pytest.raises(SolverBenchError, match="its checksum does not fit"):
        Tableau.load(rewritten(tmp_path / "t.safetensors", facts="{}"))


def refused(problem: Gaussian, tableau: Tableau, match: str, noise: Tensor | None = None) -> None:
    with pytest.raises(SolverBenchError, match=match):
        sample(problem, tableau, problem.noise([0]) if noise is None else noise)


def test_tableau_of_another_frame_is_refused() -> None:
    refused(Gaussian(frame="ve"), made(Gaussian()), "made for frame .*vp-linear.*backbone has .*ve")
    sd, ldm = Gaussian(frame="vp-discrete-sd"), Gaussian(frame="vp-discrete-ldm")
    refused(sd, made(ldm), "made for frame")


def test_tableau_of_another_output_is_refused() -> None:
    refused(Gaussian(output="eps"), made(Gaussian()), "made for output x0, the backbone has eps")


def test_tableau_that_ends_below_the_floor_is_refused() -> None:
    problem = Gaussian()
    tableau = made(problem)
    problem.t_floor = 0.01
    refused(problem, tableau, "ends at t = 0.001, the backbone reaches 0.01")


@pytest.mark.parametrize("shape", [(2, 1, 4), (2, 3, 4, 4), (2, 1, 8, 8)])
def test_noise_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    refused(Gaussian(), made(Gaussian()), "expected .B, .*1, 4, 4", torch.zeros(shape))


def test_tableau_that_is_not_finite_is_refused() -> None:
    tableau = made(Gaussian())
    refused(Gaussian(), replace(tableau, A=tableau.A * torch.nan), "not finite: its fit diverged")
    refused(Gaussian(), replace(tableau, tau=tableau.tau - 1), "a time at or below 0: it diverged")


def test_unknown_memory_is_refused() -> None:
    problem = Gaussian()
    with pytest.raises(ValueError, match="memory is 'none'; allowed: store, recompute"):
        sample(problem, made(problem), problem.noise([0]), memory="none")  # type: ignore[arg-type]


class Wasteful(Solver):
    """Calls the network once more, or once less, than asked."""

    source, extra = "none", 1

    def integrate(self, x: State, grid: TimeGrid, network: Network) -> State:
        """Nothing but calls."""
        for _ in range(grid.num_steps + self.extra):
            x = network(x, grid.t[0], grid.t_eval[0]).x0
        return x


def test_solver_that_miscounts_its_calls_is_refused() -> None:
    solver = bound(Wasteful, Gaussian(), 3)
    with pytest.raises(ValueError, match="calls the network more than 3 times"):
        solver.tableau()
    solver.extra = -1
    with pytest.raises(ValueError, match="made 2 calls; nfe is 3"):
        solver.tableau()


def test_calls_are_announced_before_they_are_made() -> None:
    problem, seen = Gaussian(), []
    sample(problem, made(problem), problem.noise([0]), on_call=seen.append)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recomputing_gives_the_gradients_of_storing(dtype: torch.dtype) -> None:
    problem, gradients = Gaussian(output="eps"), []
    solver = bound(GS, problem, 5)
    for memory in ("store", "recompute"):
        z = problem.noise(range(3)).to(dtype).requires_grad_()
        solver.zero_grad()
        final = sample(problem, solver.tableau(), z, memory=memory)  # type: ignore[arg-type]
        final.square().mean().backward()
        gradients.append([z.grad, *(p.grad for p in solver.parameters())])
    for stored, recomputed in zip(*gradients, strict=True):
        assert torch.equal(stored, recomputed)


def test_recomputing_calls_the_network_twice_and_sampling_once() -> None:
    problem = Gaussian()
    solver = bound(GS, problem, 4)
    with problem.counting() as count:
        final = sample(problem, solver.tableau(), problem.noise([0]), memory="recompute")
        assert count.calls == 4
        final.sum().backward()
    assert count.calls == 8


def test_gradient_reaches_the_noise_through_a_fixed_solver() -> None:
    problem = Gaussian()
    z = problem.noise([0, 1]).double().requires_grad_()
    tableau = made(problem)
    assert torch.autograd.gradcheck(lambda noise: sample(problem, tableau, noise), (z,))


def test_sampling_without_gradients_records_nothing() -> None:
    problem = Gaussian()
    tableau = bound(GS, problem, 4).tableau()
    assert sample(problem, tableau, problem.noise([0])).requires_grad
    assert not sample(problem, tableau.detach(), problem.noise([0])).requires_grad
