"""Exact problems of the golden numbers, and how to read those numbers."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import solverbench
from solverbench.backbones.gaussian import Gaussian, MixtureDenoiser
from solverbench.schedule import VE, NoiseSchedule, Output, VPDiscrete, VPLinear
from solverbench.solvers import Setting, Solver, sample

DATA = Path(__file__).parent / "data"
SHIPPED = Path(solverbench.__file__).parent / "goldens"  # what solverbench verify reads
DISCRETE = {"ldm": (0.0015, 0.0195), "sd": (0.00085, 0.012)}
GUIDANCE = {"edm": 1.0, "ldm": 2.0, "sd": 7.5}


@cache
def golden(name: str) -> dict[str, Tensor]:
    """The arrays of one golden file, as tensors."""
    path = SHIPPED / f"{name}.npz"
    with np.load(path if path.exists() else DATA / "goldens" / path.name) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


@cache
def vectors() -> dict[str, Any]:
    """The test vectors that go with the solver formulas."""
    return json.loads((SHIPPED / "solvers.json").read_text())


def gap(value: Tensor, wanted: Tensor | list[float]) -> float:
    """Largest difference, relative to the largest wanted entry."""
    wanted = torch.as_tensor(wanted, dtype=torch.float64).detach()
    assert value.shape == wanted.shape
    return float((value.detach() - wanted).abs().max() / wanted.abs().max())


class Problem:
    """A mixture of Gaussians whose weights, as condition, may differ by sample; with guidance."""

    def __init__(self, name: str, schedule: NoiseSchedule, output: Output) -> None:
        data = golden(f"problem_{name}")
        self.schedule, self.output, self.guidance = schedule, output, GUIDANCE[name]
        self.noise, self.weights = data["x_T"], data["weights"]
        self.condition: Tensor | None = data.get("cond_weights")
        self.network = MixtureDenoiser(data["means"], data["weights"], data["stds"])
        self.state_shape = tuple(self.noise.shape[1:])
        self.t_floor = schedule.t_min
        self.calls = 0

    def evaluate(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Data prediction, or guided noise prediction."""
        self.calls += 1
        alpha, sigma, shat = self.schedule.alpha(t), self.schedule.sigma(t), self.schedule.shat(t)
        x0 = self.network(x / alpha, shat)
        if self.output == "x0":
            return x0
        eps = (x - alpha * x0) / sigma
        if condition is None:
            return eps
        conditional = (x - alpha * self.network(x / alpha, shat, condition)) / sigma
        return eps + self.guidance * (conditional - eps)

    def labelled(self, labels: Tensor) -> Tensor:
        """The condition that follows from class labels (B,): (B, K)."""
        chosen = torch.nn.functional.one_hot(labels, len(self.weights)).double()
        return 0.9 * chosen + 0.1 * self.weights


def edm(t_min: float = 1e-3) -> Problem:
    """The pixel problem on the linear VP schedule."""
    return Problem("edm", VPLinear(t_min=t_min), "x0")


def edm_ve() -> Problem:
    """The pixel problem in the VE frame."""
    return Problem("edm", VE(), "x0")


def latent(name: str) -> Problem:
    """The latent problems ``ldm`` and ``sd``, guided."""
    return Problem(name, VPDiscrete(*DISCRETE[name]), "eps")


def line(frame: str = "ve", output: str = "x0") -> tuple[Gaussian, Tensor]:
    """The mixture of three Gaussians on a line, with its four noises (4, 1, 1, 1)."""
    data = vectors()
    means = torch.tensor(data["mixture"]["means"], dtype=torch.float64)[:, None, None, None]
    weights = torch.tensor(data["mixture"]["weights"], dtype=torch.float64)
    problem = Gaussian(
        means=means, weights=weights, stds=data["mixture"]["stds"], frame=frame, output=output
    )
    return problem, torch.tensor(data["z"], dtype=torch.float64)[:, None, None, None]


def bound(kind: type[Solver], problem: Any, nfe: int, **options: Any) -> Solver:
    """A solver bound to a problem."""
    return kind(Setting(problem.schedule, nfe, problem.output), **options)


def solve(kind: type[Solver], problem: Problem, nfe: int, **options: Any) -> Tensor:
    """Its sample from the problem's own noise and condition."""
    tableau = bound(kind, problem, nfe, **options).tableau()
    return sample(problem, tableau, problem.noise, problem.condition)
