"""The one fit loop: budget, validation, average, log, checkpoint and guard for all methods."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverbench import tensorfile
from solverbench.backbones.base import Backbone
from solverbench.benchmark.ema import Ema
from solverbench.benchmark.feeding import Feed, shuffled
from solverbench.benchmark.meter import keep_freed_memory, peak_memory
from solverbench.benchmark.sampling import Progress, Samples
from solverbench.benchmark.spec import FitSpec
from solverbench.benchmark.target_cache import cached_distance
from solverbench.errors import SolverBenchError
from solverbench.files import write_text
from solverbench.solvers.base import LearnableSolver
from solverbench.solvers.fitting import Batch, FitTask, Holding, Portions, TrainingRule
from solverbench.solvers.tableau import Tableau, sample

FORMAT = "solverbench-fit-1"
CHECKPOINT_SECONDS = float(os.environ.get("SOLVERBENCH_CHECKPOINT_SECONDS", "15"))
MAX_SKIPPED = 20  # unusable steps in a row that end a fit
WORSE = 1.5  # a fit whose validation ends at this multiple of the untrained solver's has diverged

Distance = Callable[[Tensor, Tensor], Tensor]


class FitDivergedError(SolverBenchError):
    """Training gave no finite gradient for many steps in a row, or a worse solver."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a fit needs beside the solver.

    Attributes:
        spec: budget and conventions.
        seed: of batches and of what a rule draws.
        backbone: the network.
        distance: on final states, (B, C, H, W) twice to (B,).
        train: teacher samples to learn from.
        validation: teacher samples to validate on.
    """

    spec: FitSpec
    seed: int
    backbone: Backbone
    distance: Distance
    train: Samples
    validation: Samples


def fit_task(
    spec: FitSpec,
    backbone: Backbone,
    distance: Distance,
    sample_with: Callable[[Tableau, Tensor, Any], Tensor],
    rng: torch.Generator,
) -> FitTask:
    """What a training rule is made for."""
    return FitTask(
        sample=sample_with,
        distance=distance,
        lr=spec.lr,
        clip=spec.clip,
        rng=rng,
        iterations=spec.iterations,
        round_length=spec.train_size // spec.batch,
        num_train=spec.train_size,
        num_validation=spec.validation_size,
        discriminator=backbone.discriminator,
        state_shape=backbone.state_shape,
    )


def check_fit(
    spec: FitSpec, backbone: Backbone, solver: LearnableSolver, distance: Distance
) -> None:
    """Make the training rule and use the distance once, on a state of zeros.

    With a cache of the teacher's features the first row is kept, or refused as too large.

    Raises:
        SolverBenchError: where either refuses; a fit would, after slow work.
    """
    try:
        state = torch.zeros(1, *backbone.state_shape, device=backbone.device)
        if spec.target_cache is not None and not getattr(distance, "embeds", False):
            raise ValueError(
                f"distance {spec.distance} keeps nothing of the teacher; leave target_cache out"
            )
        cached_distance(spec, distance)(state, state, torch.zeros(1, dtype=torch.int64))
        rule: object = solver.rule(fit_task(spec, backbone, distance, _unused, torch.Generator()))
    except (ValueError, TypeError) as error:
        raise SolverBenchError(f"fit of {solver.title}: {error}") from error
    if not isinstance(rule, TrainingRule):
        raise SolverBenchError(
            f"rule() of {solver.title} gave {type(rule).__name__}; it must give a TrainingRule"
        )


def _unused(tableau: Tableau, noise: Tensor, condition: Any) -> Tensor:
    raise AssertionError("nothing is sampled before a run")


class Fit:
    """One training run of one solver.

    Args:
        solver: trained in place; holds the weights to keep after ``run``.
        lesson: what to learn, from whom, how.
        holding: how much of a step is held at once; as the lesson's spec says by default.

    Attributes:
        portions: how many pairs are worked on at once, now.
        seconds: in training steps and what a rule does after a round, without validation and
            checkpoints.
        peak_bytes: above what was there before.
        network_rows: through the network, validation included.
        round_length: iterations in a pass over the training set; what is left of it is dropped.
    """

    def __init__(
        self, solver: LearnableSolver, lesson: Lesson, holding: Holding | None = None
    ) -> None:
        self.solver, self.lesson, self.spec = solver, lesson, lesson.spec
        self.train = Feed(lesson.train, lesson.backbone.device)
        self.validation = Feed(lesson.validation, lesson.backbone.device)
        if lesson.backbone.device.type == "cpu":
            keep_freed_memory()
        self.rng = torch.Generator().manual_seed(lesson.seed)
        task = fit_task(self.spec, lesson.backbone, lesson.distance, self._sample, self.rng)
        self.holding = holding or Holding(self.spec.memory, self.spec.micro_batch)
        self.portions = Portions(self.holding.micro_batch)
        task = replace(task, draw=self._draw, portions=self.portions, cached=self._cached())
        if self.holding.memory == "recompute":
            task = replace(task, beside=self._beside)
        self.rule: TrainingRule = solver.rule(task)
        parameters = dict(solver.named_parameters())
        self.ema = Ema(dict(parameters), self.spec.ema_decay, self.spec.ema_warmup)
        self.select = self.spec.select or self.rule.select
        self.chosen = {key: p.detach().clone() for key, p in parameters.items()}
        self.first = self.last = self.best = math.inf  # distances on the validation set
        self.round_length = task.round_length
        self.iteration = self.skipped = self.network_rows = 0
        self.seconds, self.peak_bytes = 0.0, 0
        self.log: list[dict[str, float]] = []

    def run(self, folder: Path, progress: Progress = lambda done, total: None) -> Tableau:
        """Train to the end of the budget, from the checkpoint in ``folder`` if there is one.

        Args:
            folder: for ``fit.safetensors`` (checkpoint) and ``fit.jsonl`` (curves).
            progress: told after each iteration.

        Returns:
            The tableau of the weights to keep: averaged or raw, last or best, as method and
            budget say.

        Raises:
            FitDivergedError: where gradients stay unusable or the solver became worse.
        """
        checkpoint = folder / "fit.safetensors"
        if checkpoint.exists():
            self.load(checkpoint)
        saved, backbone, before = time.monotonic(), self.lesson.backbone, self.network_rows
        highest = self.peak_bytes
        with peak_memory(backbone.device) as peak, backbone.counting() as count:
            if self.iteration == 0:
                self.examine()
            while self.iteration < self.spec.iterations and not self.rule.finished:
                self.advance()
                if self._validates():
                    self.examine()
                if self._ends_round:
                    self._end_round()
                self.network_rows = before + count.rows
                progress(self.iteration, self.spec.iterations)
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self.peak_bytes = max(highest, peak.bytes)
                    self.save(checkpoint)
                    saved = time.monotonic()
        self.peak_bytes = max(highest, peak.bytes)
        self.save(checkpoint)
        rows = [{k: v if math.isfinite(v) else None for k, v in row.items()} for row in self.log]
        write_text(folder / "fit.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return self._finished()

    def _finished(self) -> Tableau:
        if 2 * self.ema.num_updates < self.iteration:
            raise FitDivergedError(
                f"fit diverged: only {self.ema.num_updates} of {self.iteration} steps were usable; "
                "lower fit.lr"
            )
        if not self.last <= WORSE * self.first:
            raise FitDivergedError(
                f"fit diverged: the distance on the validation set went from {self.first:.3g} "
                f"to {self.last:.3g}; lower fit.lr"
            )
        self.ema.put(self.chosen if self.select == "best" else self.weights)
        return self.solver.tableau().detach()

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters as they are validated and kept: averaged, unless the rule says no."""
        return self.ema.shadow if self.rule.averaged else self.ema.parameters

    def advance(self) -> None:
        """One iteration."""
        start = time.perf_counter()
        before = {key: p.detach().clone() for key, p in self.ema.parameters.items()}
        losses = _numbers(self.rule.step(self._batch(), self._scale()))
        if "loss" not in losses:
            raise SolverBenchError(f"the training rule of {self.solver.title} reports no 'loss'")
        if math.isfinite(losses["loss"]) and not self._usable():
            self.ema.put(before)  # one step too far: no time below 0, no coefficient without value
            losses["loss"] = math.nan
        if math.isfinite(losses["loss"]):
            self.ema.update()
            self.skipped = 0
        else:
            self.skipped += 1
        self.iteration += 1
        self.seconds += time.perf_counter() - start
        self.log.append({"iteration": self.iteration} | losses)
        if self.skipped >= MAX_SKIPPED:
            raise FitDivergedError(
                f"fit diverged: no usable step in {MAX_SKIPPED} of them before iteration "
                f"{self.iteration}; lower fit.lr"
            )

    @torch.no_grad()
    def _usable(self) -> bool:
        """Whether the solver still has a table that can be sampled with."""
        tableau = self.solver.tableau()
        finite = bool(tableau.A.isfinite().all() and tableau.tau.isfinite().all())
        return finite and float(tableau.tau.min()) > 0

    @property
    def _ends_round(self) -> bool:
        return self.iteration % self.round_length == 0

    def _end_round(self) -> None:
        start = time.perf_counter()
        self.rule.round_ended(self._validation_batches())
        self.seconds += time.perf_counter() - start

    def examine(self) -> None:
        """Validate, log it, remember the best weights, tell the rule."""
        value = self.validate()
        if not self.log:
            self.first = value
            self.log.append({"iteration": 0})
        self.log[-1]["validation"] = self.last = value
        if value < self.best:
            self.best = value
            self.chosen = {key: p.detach().clone() for key, p in self.weights.items()}
        self.rule.validated(value)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean distance on the validation set."""
        with self.ema.applied() if self.rule.averaged else nullcontext():
            tableau = self.solver.tableau()
        total = 0.0
        for batch in self._validation_batches():
            total += self.portions.attempt(partial(self._distance, tableau, batch), len(batch))
        return total / len(self.lesson.validation.states)

    def _distance(self, tableau: Tableau, batch: Batch) -> float:
        """Sum of the distances of validation pairs, as many at once as fit."""
        total = 0.0
        for part in self.portions.of(batch):
            noise = self.rule.validation_noise(part)
            states = self._sample(tableau, noise, part.condition)
            total += float(self.lesson.distance(states, part.target).sum())
        return total

    def _validation_batches(self) -> Iterator[Batch]:
        for batch in self.validation.in_order(4 * self.spec.batch):
            yield replace(batch, validates=True)

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs."""
        tensors = {f"solver.{k}": p for k, p in self.ema.parameters.items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.shadow.items()}
        tensors |= {f"chosen.{k}": v for k, v in self.chosen.items()}
        tensors |= {f"rule.{k}": v for k, v in self.rule.state().items()}
        tensors["rng"] = self.rng.get_state()
        facts: dict[str, Any] = {k: getattr(self, k) for k in self._counters()}
        facts["ema"] = self.ema.num_updates
        facts["portions"] = [self.portions.size, self.portions.halved]
        facts["weights"] = self.lesson.backbone.weights_sha256
        tensorfile.write(path, FORMAT, tensors, facts)

    def load(self, path: Path) -> None:
        """Continue from what ``save`` wrote.

        Raises:
            SolverBenchError: for a damaged file, or one made with other weights.
        """
        tensors, facts = tensorfile.read(path, FORMAT)
        if facts["weights"] != self.lesson.backbone.weights_sha256:
            raise SolverBenchError(
                f"{path} was made with other weights; remove {path.parent} and run again"
            )
        self.ema.num_updates = facts.pop("ema")
        self.portions.size, self.portions.halved = facts["portions"]
        for key in self._counters():
            setattr(self, key, facts[key])
        for key, parameter in self.ema.parameters.items():
            parameter.data.copy_(tensors[f"solver.{key}"])
            self.ema.shadow[key] = tensors[f"ema.{key}"]
            self.chosen[key] = tensors[f"chosen.{key}"]
        prefix = "rule."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.rule.load_state(state)
        self.rng.set_state(tensors["rng"])

    @staticmethod
    def _counters() -> tuple[str, ...]:
        counted = ("iteration", "skipped", "seconds", "peak_bytes", "network_rows")
        return (*counted, "first", "last", "best", "log")

    def _validates(self) -> bool:
        last = self.iteration == self.spec.iterations or self.rule.finished
        if self._ends_round and self.rule.select == "best":
            return True  # such rules go back to the best weights after a round
        if self.rule.wants_validation:
            return True
        return last or self.iteration == 1 or self.iteration % self.spec.validate_every == 0

    def _scale(self) -> float:
        if self.spec.lr_schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * self.iteration / self.spec.iterations))

    def _batch(self) -> Batch:
        return self.train.batch(self._order(self.iteration), self._order(self.iteration + 1))

    def _order(self, iteration: int) -> Tensor:
        """Shuffled each epoch by (seed, epoch); the last incomplete batch is dropped."""
        epoch, place = divmod(iteration, self.round_length)
        rows = shuffled(len(self.lesson.train.states), self.lesson.seed, epoch)
        return rows[place * self.spec.batch :][: self.spec.batch]

    def _draw(self, num: int) -> Batch:
        """Training pairs chosen at random, with replacement."""
        rows = torch.randint(len(self.lesson.train.states), (num,), generator=self.rng)
        return self.train.batch(rows)

    def _sample(self, tableau: Tableau, noise: Tensor, condition: Any) -> Tensor:
        return sample(self.lesson.backbone, tableau, noise, condition, self.holding.memory)

    def _beside(self, tableau: Tableau, batch: Batch, others: Batch) -> tuple[Tensor, Tensor]:
        """Samples of two batches from the same passes, gradients for the first."""
        condition = batch.condition.joined(others.condition) if batch.condition else None
        noise, num = torch.cat([batch.noise, others.noise]), len(others)
        backbone = self.lesson.backbone
        states = sample(backbone, tableau, noise, condition, "recompute", beside=num)
        return states[:-num], states[-num:].detach()

    def _cached(self) -> Callable[[Tensor, Batch], Tensor]:
        """The distance, with the teacher's features kept where the spec asks for it."""
        cached = cached_distance(self.spec, self.lesson.distance)
        return lambda states, batch: cached(states, batch.target, batch.rows)

    def settings(self) -> dict[str, Any]:
        """What was held at once, where a probe chose it or memory ran out; for the record."""
        if self.spec.max_memory is None and not self.portions.halved:
            return {}
        held = {"memory": self.holding.memory, "micro_batch": self.portions.size}
        return held | {"out_of_memory": self.portions.halved}


def _numbers(given: dict[str, Tensor]) -> dict[str, float]:
    """Scalars of a step on the host, in one transfer for each place that they lie in."""
    found: dict[str, float] = {}
    losses = {key: torch.as_tensor(value) for key, value in given.items()}
    for device in {value.device for value in losses.values()}:
        there = {key: value for key, value in losses.items() if value.device == device}
        values = torch.stack([value.detach().double().reshape(()) for value in there.values()])
        found |= dict(zip(there, values.tolist(), strict=True))
    return {key: found[key] for key in losses}
