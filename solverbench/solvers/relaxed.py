"""LD3's training rule: noise that may move in a ball, learning rates that fall on a plateau."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from solverbench.solvers.base import LearnableSolver
from solverbench.solvers.fitting import Batch, FitTask, TrainingRule, load_moments, moments
from solverbench.solvers.tableau import Tableau

PATIENCE = 5  # validations in a row without improvement
DECAY = 0.8  # of learning rates, after that
FLOORED = 5  # decays that find every learning rate at its minimum: nothing is to be expected


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters that are trained and clipped together.

    Attributes:
        name: for logs and phases.
        parameters: by name.
        optimiser: over them; the learning rate it was made with is where the decay starts.
        minimum: smallest learning rate.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    optimiser: torch.optim.Optimizer
    minimum: float


class Offsets:
    """How far the noise of every pair of a set has moved, inside balls around where it began.

    Args:
        num: pairs.

    Attributes:
        moved: offsets, (num, C, H, W), or None before the first use.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self.moved: Tensor | None = None

    def of(self, batch: Batch) -> Tensor:
        """Offsets of a batch, (B, C, H, W); a copy."""
        if self.moved is None:
            self.moved = batch.noise.new_zeros(self.num, *batch.noise.shape[1:])
        moved: Tensor = self.moved.to(batch.noise)
        self.moved = moved
        return moved.index_select(0, batch.rows.to(moved.device))

    def put(self, batch: Batch, offsets: Tensor, accepted: Tensor) -> None:
        """Replace the offsets of accepted rows, (B,)."""
        assert self.moved is not None
        rows = batch.rows.to(self.moved.device)
        self.moved[rows[accepted]] = offsets[accepted]


def into_ball(offsets: Tensor, radius: float) -> Tensor:
    """Offsets (B, C, H, W) scaled down, where they are longer, to norm ``radius``."""
    norm = torch.linalg.vector_norm(offsets.flatten(1), dim=1)
    norm = norm.clamp_min(torch.finfo(offsets.dtype).tiny)
    share: Tensor = (radius / norm).clamp_max(1.0)
    return offsets * share[:, None, None, None]


class Relaxed(TrainingRule):
    """Gradient descent on parameters and on the noise of each pair, within a small ball.

    A pair's noise moves only where that lowers its loss under the new parameters. Five validations
    in a row without improvement bring the best state back; from the second time on they lower the
    learning rates of what is being trained. The harness decides when to validate, so it also sets
    how long patience lasts.

    Args:
        solver: whose parameters are trained.
        task: from the harness; its clip is used for every group by itself.
        groups: what is trained, with which optimiser.
        radius: of the ball, times d / NFE^2 with d = C H W; 0 keeps the noise and costs nothing.
        shift_lr: learning rate of the noise.
        phase: names of the groups that train at an iteration, counted from 0.

    Source: Tong et al. (2025), LD3, section 3 and authors' code, as in solvers.md section 6.3.
    Differs from the code: validation always takes the whole set, so that the best loss is never
    measured anew; the harness validates after the noise of training pairs has moved, not before,
    and need not validate after each step; every group at its minimum, not the shifts alone, ends
    the fit; the noise of validation pairs moves with the gradient of the mean over one of the
    harness's batches, which hold 4 x fit.batch of them. As in the code, optimisers keep their
    moments when the best state comes back.
    """

    averaged: ClassVar[bool] = False
    select: ClassVar[Literal["last", "best"]] = "best"

    def __init__(
        self,
        solver: LearnableSolver,
        task: FitTask,
        groups: Sequence[Group],
        *,
        radius: float,
        shift_lr: float,
        phase: Callable[[int], Collection[str]],
    ) -> None:
        self.solver, self.task, self.groups, self.phase = solver, task, groups, phase
        self.radius, self.shift_lr = radius, shift_lr
        self.parameters = {k: p for group in groups for k, p in group.parameters.items()}
        self.rates = {g.name: float(g.optimiser.param_groups[0]["lr"]) for g in groups}
        self.floored = dict.fromkeys(self.rates, 0)
        self.sets = {
            "train": Offsets(task.num_train),
            "validation": Offsets(task.num_validation),
        }
        self.iteration = self.bad = self.stalls = 0
        self.best_loss = math.inf
        self.best = self._snapshot()

    def step(self, batch: Batch, scale: float) -> dict[str, Tensor]:
        """One step of the parameters, then one of the noise of those pairs that gain by it."""
        groups = self._training(self.iteration)
        self.iteration += 1
        for parameter in self.parameters.values():
            parameter.grad = None
        start, before = self._begin("train", batch, self.solver.tableau())
        loss = before.mean()
        norms = {g.name: self._clip(g) for g in groups}
        logs = {f"grad_norm_{name}": norm for name, norm in norms.items()}
        if not all(bool(torch.isfinite(norm)) for norm in norms.values()):
            return {"loss": torch.full_like(loss, torch.nan), **logs}
        for group in groups:
            group.optimiser.param_groups[0]["lr"] = scale * self.rates[group.name]
            group.optimiser.step()
        if start is not None:
            moved = self._move("train", batch, start, before)
            logs["moved"] = moved.to(loss.dtype).mean()
        return {"loss": loss, **logs}

    def validation_noise(self, batch: Batch) -> Tensor:
        """The noise of validation pairs, where it has moved to."""
        return batch.noise + self.sets["validation"].of(batch) if self.radius else batch.noise

    def validated(self, loss: float) -> None:
        """Remember an improvement; bring the best state back when there is none for long."""
        if self._improved(loss):
            return
        self.bad += 1
        if self.bad == PATIENCE:
            if self.stalls:
                self._decay()
            self.stalls += 1
            self._restore()
            for name, offsets in self.sets.items():
                offsets.moved = _copy(self.best.get(name))

    def round_ended(self, validation: Iterable[Batch]) -> None:
        """Move the noise of validation pairs, then go on from the best parameters.

        The losses before the move are a validation, so the last steps of a round are never lost.
        """
        found = [self._relax(batch) for batch in validation]
        if self.radius and not any(moved for _, moved in found):
            self.shift_lr *= 0.5
        self._improved(float(torch.cat([losses for losses, _ in found]).mean()))
        self._restore()

    def state(self) -> dict[str, Tensor]:
        """Moments, offsets, the best state, learning rates and counters."""
        counters = [self.iteration, self.bad, self.stalls, self.best_loss, self.shift_lr]
        tensors = {
            "counters": torch.tensor(counters, dtype=torch.float64),
            "rates": torch.tensor(list(self.rates.values()), dtype=torch.float64),
            "floored": torch.tensor(list(self.floored.values())),
        }
        tensors |= {f"now.{key}": o.moved for key, o in self.sets.items() if o.moved is not None}
        tensors |= {f"best.{key}": value for key, value in self.best.items()}
        for group in self.groups:
            kept = moments(group.optimiser, group.parameters)
            tensors |= {f"moment.{key}": value for key, value in kept.items()}
        return tensors

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put everything back; the harness puts the parameters back."""
        iteration, bad, stalls, self.best_loss, self.shift_lr = state["counters"].tolist()
        self.iteration, self.bad, self.stalls = int(iteration), int(bad), int(stalls)
        self.rates = dict(zip(self.rates, state["rates"].tolist(), strict=True))
        self.floored = dict(zip(self.floored, state["floored"].tolist(), strict=True))
        self.finished = self._is_finished()
        now, self.best = _under("now", state), _under("best", state)
        for name, offsets in self.sets.items():
            offsets.moved = _copy(now.get(name))
        for group in self.groups:
            load_moments(group.optimiser, group.parameters, _under("moment", state))

    def _training(self, iteration: int) -> list[Group]:
        """The groups that train at an iteration."""
        names = self.phase(iteration)
        return [group for group in self.groups if group.name in names]

    def _clip(self, group: Group) -> Tensor:
        """The gradient norm of a group, (), before it is clipped."""
        return nn.utils.clip_grad_norm_(group.parameters.values(), self.task.clip).detach()

    def _begin(self, name: str, batch: Batch, tableau: Tableau) -> tuple[Tensor | None, Tensor]:
        """Offsets (B, C, H, W) with their gradient, None if nothing moves; losses (B,).

        Where the table has a graph, the parameters get their gradients, too.
        """
        offsets = self.sets[name].of(batch).requires_grad_() if self.radius else None
        moved = batch if offsets is None else replace(batch, noise=batch.noise + offsets)
        also = () if offsets is None else (offsets,)
        return offsets, self.task.descend_from(tableau, moved, self._named, also=also)["loss"]

    def _named(self, tableau: Tableau, part: Batch) -> dict[str, Tensor]:
        """The losses as the harness wants them."""
        return {"loss": self._losses(tableau, part)}

    def _losses(self, tableau: Tableau, part: Batch) -> Tensor:
        """The distance of each pair, (b,)."""
        return self.task.compare(self.task.sample(tableau, part.noise, part.condition), part)

    def _all_losses(self, tableau: Tableau, batch: Batch) -> Tensor:
        """The same for a whole batch, (B,), a part at a time."""
        portions = self.task.portions

        def work() -> list[Tensor]:
            return [self._losses(tableau, part) for part in portions.of(batch)]

        return torch.cat(portions.attempt(work, len(batch)))

    @torch.no_grad()
    def _move(self, name: str, batch: Batch, start: Tensor, before: Tensor) -> Tensor:
        """Plain gradient descent on the noise, within the ball, where it lowers the loss.

        Args:
            name: of the set.
            batch: its pairs.
            start: offsets with the gradient of the mean loss, (B, C, H, W).
            before: losses there, (B,).

        Returns:
            Which pairs moved, (B,).
        """
        assert start.grad is not None
        radius = self.radius * batch.noise[0].numel() / self.solver.setting.nfe**2
        offsets = into_ball(start - self.shift_lr * start.grad, radius)
        tableau = self.solver.tableau().detach()
        moved = replace(batch, noise=batch.noise + offsets)
        accepted = self._all_losses(tableau, moved) < before
        self.sets[name].put(batch, offsets, accepted)
        return accepted

    def _relax(self, batch: Batch) -> tuple[Tensor, bool]:
        """Losses of validation pairs, (B,), and whether any of them moved afterwards."""
        with torch.no_grad():
            tableau = self.solver.tableau().detach()
        if not self.radius:
            return self._all_losses(tableau, batch), False
        start, losses = self._begin("validation", batch, tableau)
        assert start is not None
        return losses, bool(self._move("validation", batch, start, losses).any())

    def _improved(self, loss: float) -> bool:
        """Remember the state if its validation loss is the best one."""
        if not loss < self.best_loss:
            return False
        self.best_loss, self.bad, self.best = loss, 0, self._snapshot()
        return True

    def _decay(self) -> None:
        """Lower the learning rates of what trained last."""
        for group in self._training(max(self.iteration - 1, 0)):
            rate = self.rates[group.name]
            self.rates[group.name] = max(DECAY * rate, min(rate, group.minimum))
            self.floored[group.name] += self.rates[group.name] <= group.minimum
        self.finished = self._is_finished()

    def _is_finished(self) -> bool:
        return all(count >= FLOORED for count in self.floored.values())

    def _snapshot(self) -> dict[str, Tensor]:
        """Copies of the parameters and of all offsets."""
        kept = {f"solver.{key}": p.detach().clone() for key, p in self.parameters.items()}
        moved = {key: o.moved.clone() for key, o in self.sets.items() if o.moved is not None}
        return kept | moved

    @torch.no_grad()
    def _restore(self) -> None:
        """The best parameters, and patience anew."""
        self.bad = 0
        for key, parameter in self.parameters.items():
            parameter.copy_(self.best[f"solver.{key}"])


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What carries a prefix, without it."""
    start = f"{prefix}."
    return {key.removeprefix(start): v for key, v in state.items() if key.startswith(start)}
