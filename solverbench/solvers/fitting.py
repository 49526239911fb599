"""What training a solver means: the task that the harness sets, the rule that a method brings."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from solverbench.solvers.base import LearnableSolver
from solverbench.stages import stage

if TYPE_CHECKING:
    from solverbench.solvers.tableau import Tableau

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Batch:
    """Teacher pairs of one training step.

    Attributes:
        noise: unit-variance noise, (B, C, H, W).
        target: the teacher's final state of the same noise, (B, C, H, W).
        condition: what the network is conditioned on, or None.
        rows: their places in the teacher set (training or validation), (B,).
        validates: whether they are validation pairs.
    """

    noise: Tensor
    target: Tensor
    condition: Any
    rows: Tensor
    validates: bool = False

    def __len__(self) -> int:
        """B."""
        return len(self.noise)

    def parts(self, size: int) -> list["Batch"]:
        """The same pairs in order, at most ``size`` at a time."""
        if size >= len(self):
            return [self]
        cuts = [slice(start, start + size) for start in range(0, len(self), size)]
        return [
            replace(
                self,
                noise=self.noise[cut],
                target=self.target[cut],
                condition=None if self.condition is None else self.condition[cut],
                rows=self.rows[cut],
            )
            for cut in cuts
        ]


class Holding(NamedTuple):
    """How much of a training step is held at once; gradients are equal but for rounding.

    Attributes:
        memory: see ``tableau.sample``.
        micro_batch: pairs worked on at once, None for the whole batch.
    """

    memory: Literal["store", "recompute"] | int = "store"
    micro_batch: int | None = None


LossesOf = Callable[["Tableau", Batch], dict[str, Tensor]]


class Portions:
    """How many pairs are worked on at once; halves where memory runs out.

    Args:
        size: pairs; None for the whole batch.

    Attributes:
        halved: how often memory ran out; each time less was worked on at once from then on.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size, self.halved = size, 0

    def of(self, batch: Batch) -> list[Batch]:
        """The batch in parts of the present size."""
        return batch.parts(self.size or len(batch))

    def attempt(self, work: Callable[[], T], num: int) -> T:
        """What ``work`` gives, tried again with half the size while memory runs out.

        Args:
            work: asks ``of`` for its parts each time; must bear to be run again.
            num: pairs of the whole batch.

        Raises:
            torch.OutOfMemoryError: where one pair at a time is too much.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                size = min(self.size or num, num)
                if size == 1:
                    raise
                self.size, self.halved = size // 2, self.halved + 1
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


@dataclass(frozen=True, eq=False)
class FitTask:
    """What the harness hands to a learnable solver; everything in it is equal for all methods.

    Attributes:
        sample: ``sample(tableau, noise, condition)`` on the backbone, with gradients.
        distance: ``distance(student, target)`` on final states, (B, C, H, W) twice to (B,); rules
            use ``compare``.
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
        cached: as ``compare``, for training pairs; None where nothing is kept of their targets.
        beside: ``beside(tableau, batch, others)`` samples the pairs of ``batch`` with gradients
            and those of ``others`` without, in the same network passes; None where passes keep
            activations, so that this would save nothing.
        portions: how many pairs are worked on at once.
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
    cached: Callable[[Tensor, Batch], Tensor] | None = None
    beside: Callable[["Tableau", Batch, Batch], tuple[Tensor, Tensor]] | None = None
    portions: Portions = field(default_factory=Portions)

    def compare(self, states: Tensor, batch: Batch) -> Tensor:
        """Distances of final states (B, C, H, W) to the teacher's of the same pairs, (B,)."""
        with stage("loss"):
            if self.cached is not None and not batch.validates:
                return self.cached(states, batch)
            return self.distance(states, batch.target)

    def descend_from(
        self,
        tableau: "Tableau",
        batch: Batch,
        losses_of: LossesOf,
        leaf: "Tableau | None" = None,
        also: Iterable[Tensor] = (),
    ) -> dict[str, Tensor]:
        """Gradients of the mean loss of a batch, a part at a time; the table's own graph runs once.

        Args:
            tableau: with or without gradients.
            batch: all pairs.
            losses_of: losses of a part, (b,) each by name, under a table that it is given;
                gradients are those of ``loss``. It may be called again for the same pairs.
            leaf: ``tableau.leaf()`` where ``losses_of`` has begun to use it already.
            also: other leaves that collect gradients; theirs are set to None first.

        Returns:
            The losses by name, (B,) each, without gradients.
        """
        used, leaves = leaf or tableau.leaf(), list(also)

        def work() -> list[dict[str, Tensor]]:
            for tensor in (used.A, used.tau, *leaves):
                tensor.grad = None
            found = []
            for part in self.portions.of(batch):
                losses = losses_of(used, part)
                with stage("loss"):
                    share = losses["loss"].mean() * (len(part) / len(batch))
                    share.backward()  # type: ignore[no-untyped-call]
                found.append({key: value.detach() for key, value in losses.items()})
            return found

        found = self.portions.attempt(work, len(batch))
        with stage("solver algebra"):
            tableau.backward_from(used)
        return {key: torch.cat([losses[key] for losses in found]) for key in found[0]}


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

    def skip_ahead(self) -> None:  # noqa: B027 (a hook)
        """Be where a step costs most; asked by probes and profiles, which keep nothing."""

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
        with stage("solver algebra"):
            tableau = self.solver.tableau()
        return self.descend(tableau, batch, self._losses, scale)

    def _losses(self, tableau: "Tableau", part: Batch) -> dict[str, Tensor]:
        """Distances to the teacher."""
        sample = self.task.sample(tableau, part.noise, part.condition)
        return {"loss": self.task.compare(sample, part)}

    def descend(
        self,
        tableau: "Tableau",
        batch: Batch,
        losses_of: LossesOf,
        scale: float,
        leaf: "Tableau | None" = None,
    ) -> dict[str, Tensor]:
        """Clip the gradient of the mean loss and step; nothing changes where it is not finite.

        Args:
            tableau: the solver's, with gradients.
            batch: teacher pairs.
            losses_of: see ``FitTask.descend_from``.
            scale: factor on the learning rate.
            leaf: see there.

        Returns:
            Means of the losses, ``loss`` NaN where there was no step, and ``grad_norm`` before
            clipping, () each.
        """
        self.optimiser.zero_grad()
        losses = self.task.descend_from(tableau, batch, losses_of, leaf)
        logs = {key: value.mean() for key, value in losses.items()}
        with stage("optimiser"):
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.task.clip).detach()
            if bool(torch.isfinite(norm)):
                self.optimiser.param_groups[0]["lr"] = scale * self.task.lr
                self.optimiser.step()
            else:
                logs["loss"] = torch.full_like(logs["loss"], torch.nan)
        return logs | {"grad_norm": norm}

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
