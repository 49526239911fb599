"""What training a solver means: the task that the harness sets, the rule that a method brings."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from solverbench.solvers.base import LearnableSolver

if TYPE_CHECKING:
    from solverbench.solvers.tableau import Tableau


@dataclass(frozen=True, eq=False)
class Batch:
    """Teacher pairs of one training step.

    Attributes:
        noise: unit-variance noise, (B, C, H, W).
        target: the teacher's final state of the same noise, (B, C, H, W).
        condition: what the network is conditioned on, or None.
        rows: their places in the teacher set (training or validation), (B,).
    """

    noise: Tensor
    target: Tensor
    condition: Any
    rows: Tensor


@dataclass(frozen=True, eq=False)
class FitTask:
    """What the harness hands to a learnable solver; everything in it is equal for all methods.

    Attributes:
        sample: ``sample(tableau, noise, condition)`` on the backbone, with gradients.
        distance: ``distance(student, target)`` on final states, (B, C, H, W) twice to (B,).
        lr: learning rate asked for.
        clip: gradient norm asked for.
        rng: generator of this run (CPU), for what a rule draws itself; checkpointed.
        iterations: how many steps there will be at most.
        round_length: steps in a pass over the training set.
        num_train: teacher pairs to train on.
        num_validation: teacher pairs to validate on.
        discriminator: weights of the backbone's pretrained discriminator, None where it has none.
        draw: ``draw(num)`` gives more training pairs, chosen with ``rng``.
        state_shape: (C, H, W) of the states, None where a rule is to learn it from its batches.
    """

    sample: Callable[["Tableau", Tensor, Any], Tensor]
    distance: Callable[[Tensor, Tensor], Tensor]
    lr: float
    clip: float
    rng: torch.Generator
    iterations: int = 1
    round_length: int = 1
    num_train: int = 0
    num_validation: int = 0
    discriminator: Path | None = None
    draw: Callable[[int], Batch] | None = None
    state_shape: tuple[int, int, int] | None = None


class TrainingRule(ABC):
    """What happens to one batch: losses, optimisers and their state. The loop is the harness's.

    Attributes:
        averaged: whether the harness's average of the weights is validated and kept, or the raw
            weights are.
        select: which weights the fit ends with: the ``last`` ones, or those with the ``best``
            validation. A recipe can ask for the other.
        finished: set by a rule that wants to stop before the budget is spent.
    """

    averaged: ClassVar[bool] = True
    select: ClassVar[Literal["last", "best"]] = "last"
    finished: bool = False

    @property
    def wants_validation(self) -> bool:
        """Asked after each step; True validates now, whatever the recipe's interval."""
        return False

    @abstractmethod
    def step(self, batch: Batch, scale: float) -> dict[str, Tensor]:
        """Train on one batch.

        Args:
            batch: teacher pairs.
            scale: factor on the learning rates at this iteration.

        Returns:
            What to log, () each, without gradients; ``loss`` is required. A step whose gradient
            is not finite changes nothing and reports a loss that is not finite.
        """

    def facts(self) -> dict[str, Any]:
        """What a record must hold beside the options, as JSON values."""
        return {}

    def validation_noise(self, batch: Batch) -> Tensor:
        """The noise that validation pairs start from, (B, C, H, W); their own unless overridden."""
        return batch.noise

    def validated(self, loss: float) -> None:  # noqa: B027 (a hook)
        """Told of the mean distance on the validation set after each validation."""

    def round_ended(self, validation: Iterable[Batch]) -> None:  # noqa: B027 (a hook)
        """Called after each pass over the training set, with the validation pairs in batches."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything but the solver's own parameters, for a checkpoint."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what ``state`` gave."""


class Distillation(TrainingRule):
    """Adam on the mean distance to the teacher's sample, gradients clipped by their global norm.

    Args:
        solver: whose parameters are trained.
        task: from the harness.

    Source: gs-gas.md section 8.4, steps 1, 2 and 6.
    """

    def __init__(self, solver: LearnableSolver, task: FitTask) -> None:
        self.solver, self.task = solver, task
        self.parameters = dict(solver.named_parameters())
        self.optimiser = torch.optim.Adam(self.parameters.values(), lr=task.lr)

    def step(self, batch: Batch, scale: float) -> dict[str, Tensor]:
        """One Adam step on one batch."""
        sample = self.task.sample(self.solver.tableau(), batch.noise, batch.condition)
        return self.descend(self.task.distance(sample, batch.target).mean(), scale)

    def descend(self, loss: Tensor, scale: float) -> dict[str, Tensor]:
        """Clip the gradient of a loss () and step; nothing changes where it is not finite.

        Args:
            loss: what to lower, with its graph.
            scale: factor on the learning rate.

        Returns:
            ``loss``, NaN where there was no step, and ``grad_norm`` before clipping, () each.
        """
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.task.clip)
        if bool(torch.isfinite(norm)):
            self.optimiser.param_groups[0]["lr"] = scale * self.task.lr
            self.optimiser.step()
            return {"loss": loss.detach(), "grad_norm": norm.detach()}
        return {"loss": torch.full_like(loss.detach(), torch.nan), "grad_norm": norm.detach()}

    def state(self) -> dict[str, Tensor]:
        """Adam's moments."""
        return moments(self.optimiser, self.parameters)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put Adam's moments back."""
        load_moments(self.optimiser, self.parameters, state)


def check_rates(rates: Mapping[str, float]) -> None:
    """Refuse learning rates, radii and weights, by name, that are below 0 or not finite.

    Raises:
        ValueError: for the first such number.
    """
    for name, value in rates.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is a finite number of at least 0; got {value}")


def moments(
    optimiser: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]
) -> dict[str, Tensor]:
    """What an optimiser remembers of named parameters, as ``parameter.moment``."""
    return {
        f"{key}.{name}": value
        for key, parameter in parameters.items()
        for name, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_moments(
    optimiser: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter],
    state: dict[str, Tensor],
) -> None:
    """Put back what ``moments`` gave; other entries of ``state`` are passed over."""
    for key, parameter in parameters.items():
        names = [name for name in state if name.rpartition(".")[0] == key]
        if names:
            values = {name.rpartition(".")[2]: state[name].clone() for name in names}
            optimiser.state[parameter] = values
