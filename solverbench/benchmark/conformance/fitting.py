"""The check of a training rule: it steps, and it continues from what it stored."""

import math
from typing import Any

import torch
from torch import Tensor

from solverbench.benchmark.conformance.checks import UnmetError, content, demand
from solverbench.benchmark.load import load_backbone, load_solver
from solverbench.benchmark.spec import FitSpec
from solverbench.benchmark.training import fit_task
from solverbench.solvers.base import LearnableSolver
from solverbench.solvers.fitting import Batch, TrainingRule
from solverbench.solvers.tableau import Tableau, sample


def trains(name: str, nfe: int) -> str:
    """Two steps of a learnable solver on digits equal one, a checkpoint and one, bit for bit."""
    whole, first, second = (_Pupil(name, nfe) for _ in range(3))
    losses = [whole.step(0), whole.step(1)]
    first.step(0)
    second.solver.load_state_dict(first.solver.state_dict())
    second.rng.set_state(first.rng.get_state())
    second.rule.load_state({key: value.clone() for key, value in first.rule.state().items()})
    second.step(1)
    equal = content(whole.solver.state_dict()) == content(second.solver.state_dict())
    demand(equal, "a step after load_state(state()) differs from one in a row")
    return f"loss {losses[0]:.3g}, then {losses[1]:.3g}"


class _Pupil:
    """A solver with its training rule on digits, and two batches of made-up pairs."""

    def __init__(self, name: str, nfe: int) -> None:
        backbone = load_backbone("digits")
        solver = load_solver(name, backbone, nfe)
        assert isinstance(solver, LearnableSolver)
        self.solver, self.rng = solver, torch.Generator().manual_seed(0)
        spec = FitSpec(iterations=20, batch=2, train_size=4, validation_size=2, lr=1e-4)
        noise = backbone.noise(range(4))
        self.batches = [
            Batch(noise[rows], 0.1 * noise[rows], None, rows)
            for rows in (torch.arange(2), torch.arange(2, 4))
        ]

        def sampled(tableau: Tableau, start: Tensor, condition: Any) -> Tensor:
            return sample(backbone, tableau, start, condition)

        rule: object = solver.rule(fit_task(spec, backbone, _squared, sampled, self.rng))
        if not isinstance(rule, TrainingRule):
            raise UnmetError(f"rule() gave {type(rule).__name__}, not a TrainingRule")
        self.rule: TrainingRule = rule

    def step(self, i: int) -> float:
        logs = self.rule.step(self.batches[i], 1.0)
        demand("loss" in logs, f"step() gave {', '.join(logs) or 'nothing'} and no loss")
        loss = float(logs["loss"])
        demand(math.isfinite(loss), f"the loss of step {i + 1} is {loss}")
        return loss


def _squared(student: Tensor, target: Tensor) -> Tensor:
    return (student - target).square().flatten(1).mean(1)
