"""The one fit loop: budget, validation, average, log, checkpoint and guard for all methods."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverbench import tensorfile
from solverbench.backbones.base import Backbone
from solverbench.benchmark.meter import peak_memory
from solverbench.benchmark.sampling import Progress, Samples
from solverbench.benchmark.spec import FitSpec, digest
from solverbench.errors import SolverBenchError
from solverbench.files import write_text
from solverbench.solvers.base import LearnableSolver
from solverbench.solvers.fitting import Batch, FitTask, TrainingRule
from solverbench.solvers.tableau import Tableau, sample

FORMAT = "solverbench-fit-1"
CHECKPOINT_SECONDS = float(os.environ.get("SOLVERBENCH_CHECKPOINT_SECONDS", "15"))
MAX_SKIPPED = 20  # unusable steps in a row that end a fit

Distance = Callable[[Tensor, Tensor], Tensor]


class FitDivergedError(SolverBenchError):
    """Training gave no finite gradient for many steps in a row."""


class Ema:
    """Weight average whose decay warms up.

    After update n the decay is min(decay, (1 + n) / (10 + n)): for runs of up to some thousand
    updates the warm-up is the smaller one, so that the last n / 9 iterates are averaged.

    Args:
        parameters: by name; read at every update.
        decay: largest decay.
        warmup: without it the decay is constant.

    Source: gs-gas.md section 9 (torch_ema as the authors' code uses it).
    """

    def __init__(self, parameters: dict[str, Tensor], decay: float, warmup: bool = True) -> None:
        self.parameters, self.decay, self.warmup = parameters, decay, warmup
        self.shadow = {key: p.detach().clone() for key, p in parameters.items()}
        self.num_updates = 0

    def update(self) -> None:
        """Move the average towards the parameters."""
        self.num_updates += 1
        n = self.num_updates
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        for key, parameter in self.parameters.items():
            self.shadow[key] -= (1 - decay) * (self.shadow[key] - parameter.detach())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the parameters be the average inside the block."""
        kept = {key: p.detach().clone() for key, p in self.parameters.items()}
        self.put(self.shadow)
        try:
            yield
        finally:
            self.put(kept)

    def put(self, values: dict[str, Tensor]) -> None:
        """Set the parameters, by name."""
        for key, parameter in self.parameters.items():
            parameter.data.copy_(values[key])


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


class Fit:
    """One training run of one solver.

    Args:
        solver: trained in place; holds the averaged weights after ``run``.
        lesson: what to learn, from whom, how.
    """

    def __init__(self, solver: LearnableSolver, lesson: Lesson) -> None:
        self.solver, self.lesson, self.spec = solver, lesson, lesson.spec
        self.rng = torch.Generator().manual_seed(lesson.seed)
        self.rule: TrainingRule = solver.rule(
            FitTask(self._sample, lesson.distance, self.spec.lr, self.spec.clip, self.rng)
        )
        parameters = dict(solver.named_parameters())
        self.ema = Ema(dict(parameters), self.spec.ema_decay, self.spec.ema_warmup)
        self.iteration = self.skipped = 0
        self.seconds, self.peak_bytes = 0.0, 0
        self.log: list[dict[str, float]] = []

    def run(self, folder: Path, progress: Progress = lambda done, total: None) -> Tableau:
        """Train to the end of the budget, from the checkpoint in ``folder`` if there is one.

        Args:
            folder: for ``fit.safetensors`` (checkpoint) and ``fit.jsonl`` (curves).
            progress: told after each iteration.

        Returns:
            The tableau of the averaged weights.

        Raises:
            FitDivergedError: where gradients stay unusable.
        """
        checkpoint = folder / "fit.safetensors"
        if checkpoint.exists():
            self.load(checkpoint)
        saved = time.monotonic()
        with peak_memory(self.lesson.backbone.device) as peak:
            while self.iteration < self.spec.iterations:
                self.advance()
                if self._validates():
                    self.log[-1]["validation"] = self.validate()
                progress(self.iteration, self.spec.iterations)
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self.save(checkpoint)
                    saved = time.monotonic()
        self.peak_bytes = max(self.peak_bytes, peak.bytes)
        self.save(checkpoint)
        rows = [{k: v if math.isfinite(v) else None for k, v in row.items()} for row in self.log]
        write_text(folder / "fit.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self.ema.put(self.ema.shadow)
        return self.solver.tableau().detach()

    def advance(self) -> None:
        """One iteration."""
        start = time.perf_counter()
        losses = self.rule.step(self._batch(), self._scale())
        loss = float(losses["loss"])
        if math.isfinite(loss):
            self.ema.update()
            self.skipped = 0
        else:
            self.skipped += 1
        self.iteration += 1
        self.seconds += time.perf_counter() - start
        self.log.append({"iteration": self.iteration} | {k: float(v) for k, v in losses.items()})
        if self.skipped >= MAX_SKIPPED:
            raise FitDivergedError(
                f"fit diverged: no usable gradient in {MAX_SKIPPED} steps before iteration "
                f"{self.iteration}; lower fit.lr"
            )

    @torch.no_grad()
    def validate(self) -> float:
        """Mean distance of averaged weights on the validation set."""
        rows, total = torch.arange(len(self.lesson.validation.states)), 0.0
        with self.ema.applied():
            tableau = self.solver.tableau()
        for part in torch.split(rows, 4 * self.spec.batch):
            batch = self._rows(self.lesson.validation, part)
            states = self._sample(tableau, batch.noise, batch.condition)
            total += float(self.lesson.distance(states, batch.target).sum())
        return total / len(rows)

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs."""
        tensors = {f"solver.{k}": p for k, p in self.ema.parameters.items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.shadow.items()}
        tensors |= {f"rule.{k}": v for k, v in self.rule.state().items()}
        tensors["rng"] = self.rng.get_state()
        facts = {k: getattr(self, k) for k in self._counters()} | {"ema": self.ema.num_updates}
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
        for key in self._counters():
            setattr(self, key, facts[key])
        for key, parameter in self.ema.parameters.items():
            parameter.data.copy_(tensors[f"solver.{key}"])
            self.ema.shadow[key] = tensors[f"ema.{key}"]
        prefix = "rule."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.rule.load_state(state)
        self.rng.set_state(tensors["rng"])

    @staticmethod
    def _counters() -> tuple[str, ...]:
        return ("iteration", "skipped", "seconds", "peak_bytes", "log")

    def _validates(self) -> bool:
        last = self.iteration == self.spec.iterations
        return last or self.iteration == 1 or self.iteration % self.spec.validate_every == 0

    def _scale(self) -> float:
        if self.spec.lr_schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * self.iteration / self.spec.iterations))

    def _batch(self) -> Batch:
        """Shuffled each epoch by (seed, epoch); the last incomplete batch is dropped."""
        num = len(self.lesson.train.states)
        epoch, place = divmod(self.iteration, num // self.spec.batch)
        order = int(digest(self.lesson.seed, epoch)[:8], 16)  # generators read 32 bits of a seed
        rng = torch.Generator().manual_seed(order)
        rows = torch.randperm(num, generator=rng)[place * self.spec.batch :][: self.spec.batch]
        return self._rows(self.lesson.train, rows)

    def _rows(self, samples: Samples, rows: Tensor) -> Batch:
        device = self.lesson.backbone.device
        condition = samples.condition[rows] if samples.condition is not None else None
        noise, target = samples.noise[rows].to(device), samples.states[rows].to(device)
        return Batch(noise, target, condition, rows)

    def _sample(self, tableau: Tableau, noise: Tensor, condition: Any) -> Tensor:
        return sample(self.lesson.backbone, tableau, noise, condition, self.spec.memory)
