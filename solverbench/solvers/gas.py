"""Generalized Adversarial Solver: GS, trained against a discriminator as well."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverbench import tensorfile
from solverbench.discriminator import (
    FORMAT,
    LATENT,
    PRESETS,
    R3GANDiscriminator,
    adam_of,
    discriminator_gradient,
    generator_loss,
    of_state,
    preset,
    step_where_finite,
)
from solverbench.errors import SolverBenchError
from solverbench.files import sha256_of
from solverbench.published_discriminator import file_of, load_file
from solverbench.solvers.base import LearnableSolver, Setting
from solverbench.solvers.fitting import (
    Batch,
    Distillation,
    FitTask,
    TrainingRule,
    load_moments,
    moments,
)
from solverbench.solvers.game import FITTING, Game
from solverbench.solvers.gs import GS
from solverbench.solvers.tableau import Tableau
from solverbench.stages import stage

PREFIX = "discriminator."  # of its entries in a checkpoint
FOREKNOWLEDGE = (
    "pretrained discriminator: it has seen more samples of the teacher and of other solvers, "
    "which the fit cost does not count"
)
OUTSIDE = (
    "published discriminator: it has been trained on images of its data set, which the fit cost "
    "does not count"
)


class GAS(GS):
    """GS whose samples a discriminator must not tell from the teacher's.

    While the discriminator learns alone, the harness's average of the weights and its schedule of
    the learning rate go on.

    Source: GAS (arXiv 2510.17699), section 4, eq. 10 and 22, as the authors' code computes them.
    Differs: a warm start is made inside the fit, by plain distillation, so that its cost is
    counted; no file of a trained GS is read.
    """

    source = "GAS (arXiv 2510.17699), section 4 and appendix"
    title = "GAS"

    def __init__(  # noqa: PLR0913 (the options of GS and of the game)
        self,
        setting: Setting,
        *,
        schedule: str | Sequence[float] = "time-uniform",
        t_min: float | None = None,
        rho: float | None = None,
        history: int | None = None,
        weight: float = 1.0,
        gamma: float = 0.2,
        disc_lr: float = 1e-5,
        loss: str = "relativistic",
        discriminator: str = "auto",
        pretrained: bool = False,
        warm_start: float = 0.0,
        disc_warmup: float = 0.0,
        disc_warmup_lr: float | None = None,
        disc_batch: int | None = None,
        joint_lr: float | None = None,
        disc_precision: str = "float32",
    ) -> None:
        """Bind to a setting.

        Args:
            setting: noise schedule, NFE, network output.
            schedule: initial time schedule, or the list of its N + 1 times.
            t_min: last time; the noise schedule's own by default.
            rho: exponent of the schedules that have one.
            history: K, states and predictions kept, at most; NFE by default.
            weight: of the adversarial loss beside the distance to the teacher.
            gamma: weight of the discriminator's gradient penalties.
            disc_lr: the discriminator's learning rate, constant.
            loss: ``relativistic`` or ``traditional``.
            discriminator: sizes of one drawn anew, a preset or ``auto`` (by the state's size); or
                a published one, by its name or as a path to its .pkl or converted .safetensors.
            pretrained: start from the backbone's own discriminator instead.
            warm_start: share of the budget that begins it, with plain distillation.
            disc_warmup: share after that in which the discriminator learns alone.
            disc_warmup_lr: its learning rate there; ``disc_lr`` by default.
            disc_batch: pairs of a discriminator's step, drawn anew; the batch's own by default, as
                in the paper.
            joint_lr: the solver's learning rate once both play, falling along a cosine of its own;
                the warm start then has one too. By default the fit's schedule goes on.
            disc_precision: ``float32``, or ``stored`` for a published one whose stages compute in
                the types of its file, as in the paper.
        """
        super().__init__(setting, schedule=schedule, t_min=t_min, rho=rho, history=history)
        warmup_lr = disc_lr if disc_warmup_lr is None else disc_warmup_lr
        self.game = Game(
            weight,
            gamma,
            disc_lr,
            loss,
            discriminator,
            pretrained,
            warm_start,
            disc_warmup,
            warmup_lr,
            disc_batch,
            joint_lr,
            disc_precision,
        )
        if loss == "traditional":
            self.title = f"{self.title} (traditional loss)"
        self.flags = (FOREKNOWLEDGE,) if pretrained else (OUTSIDE,) if self.game.has_file else ()

    def rule(self, task: FitTask) -> TrainingRule:
        """Distillation with an adversary."""
        return Adversarial(self, self.game, task)


class Adversarial(Distillation):
    """Solver and discriminator in turn, a step each a batch.

    The discriminator compares the teacher's samples with the student's of fresh noise; the solver
    is then judged by the updated discriminator on the batch's own pairs. Only the solver's
    gradients are clipped, only its learning rate follows the schedule of the fit.

    Args:
        solver: whose parameters are trained.
        game: options of the two players.
        task: from the harness.

    Raises:
        SolverBenchError: where a discriminator of a file is wanted and there is none, where the
            chosen one does not fit the task's states, or where both would never play.

    Source: gs-gas.md section 8.4.
    """

    def __init__(self, solver: LearnableSolver, game: Game, task: FitTask) -> None:
        super().__init__(solver, task)
        self.game, self.iteration = game, 0
        self.warm = round(game.warm_start * task.iterations)
        self.alone = self.warm + round(game.disc_warmup * task.iterations)
        if self.alone >= task.iterations:
            raise SolverBenchError(
                f"gas would never meet its adversary: warm_start and disc_warmup take {self.alone} "
                f"of {task.iterations} iterations; lower a share or raise fit.iterations"
            )
        self._path = self._chosen_file()
        self._pretrained = load_file(self._path, game.disc_precision) if self._path else None
        if task.state_shape is not None:
            self._fitting(task.state_shape)
        self._together = True  # fakes and student in the same passes
        self._stored: dict[str, Tensor] | None = None  # of a checkpoint, until the first batch

    def step(self, batch: Batch, scale: float) -> dict[str, Tensor]:
        """One step of whoever plays in this phase.

        Where the discriminator learns alone, ``loss`` is its adversarial loss.
        """
        self.iteration += 1
        rate = scale if self.game.joint_lr is None else self._own_rate(self.game.joint_lr)
        if self.iteration <= self.warm:
            return super().step(batch, rate)
        self._seat(batch)
        if self.iteration <= self.alone:
            rivals = self._rivals(batch)
            fake = self._fakes(self.solver.tableau().detach(), rivals)
            logs = self._judge(rivals, fake, self.game.disc_warmup_lr)
            return {"loss": logs["dis_loss_adv"]} | logs
        return self._play(batch, rate)

    def _own_rate(self, joint_lr: float) -> float:
        """Factor on the fit's learning rate: a cosine for the warm start, one for joint play."""
        done = self.iteration - 1
        if done < self.warm:
            return 0.5 * (1 + math.cos(math.pi * done / self.warm))
        share = max(0, done - self.alone) / (self.task.iterations - self.alone)
        return joint_lr / self.task.lr * 0.5 * (1 + math.cos(math.pi * share))

    def fresh_noise(self, batch: Batch) -> Tensor:
        """Noise of the discriminator's fakes, shape and place of the batch's."""
        noise = batch.noise
        drawn = torch.randn(noise.shape, generator=self.task.rng, dtype=noise.dtype)
        return drawn.to(noise.device)

    def make_discriminator(self, batch: Batch) -> R3GANDiscriminator:
        """The discriminator of a run that begins.

        Raises:
            SolverBenchError: where none fits states of this size.
        """
        _, channels, height, width = batch.target.shape
        name = self._fitting((channels, height, width))
        return self._pretrained or preset(name, channels, self.task.rng)

    def facts(self) -> dict[str, Any]:
        """Which file the discriminator began from; of a shipped one, what it was made of, too."""
        if self._path is None:
            return {}
        if not self.game.pretrained:
            return {"discriminator_file_sha256": sha256_of(self._path)}
        return {
            "discriminator_sha256": sha256_of(self._path),
            "discriminator_made": tensorfile.read(self._path, FORMAT)[1].get("recipe", {}),
        }

    def state(self) -> dict[str, Tensor]:
        """Both players' moments, the discriminator's weights and the iteration."""
        state = super().state() | {"iteration": torch.tensor(self.iteration)}
        if self._stored is not None:  # loaded, not played on
            return state | {PREFIX + key: value for key, value in self._stored.items()}
        if not hasattr(self, "discriminator"):
            return state
        held = {f"weights.{k}": v for k, v in self.discriminator.state_dict().items()}
        held |= moments(self.adam, dict(self.discriminator.named_parameters()))
        return state | {PREFIX + key: value.clone() for key, value in held.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what ``state`` gave."""
        super().load_state(state)
        self.iteration = int(state["iteration"])
        held = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
        self._stored = held or None

    def _fitting(self, shape: tuple[int, int, int]) -> str:
        """The preset for states (C, H, W), empty for a pretrained discriminator.

        Raises:
            SolverBenchError: where the chosen discriminator does not fit them.
        """
        channels, height, width = shape
        name, made = self.game.discriminator, self._pretrained
        if made is not None:
            name, takes = "", (made.num_channels, made.resolution, made.resolution)
        else:
            name = FITTING.get(height, "") if name == "auto" and height == width else name
            if name not in PRESETS:
                sizes = ", ".join(f"{side} x {side}" for side in FITTING)
                raise SolverBenchError(
                    f"gas has no discriminator for states of {height} x {width}; allowed: {sizes}"
                )
            side = 4 * 2 ** (len(PRESETS[name].widths) - 1)
            takes = (LATENT.get(name, channels), side, side)
        if takes != shape:
            given, asked = (" x ".join(map(str, sizes)) for sizes in (takes, shape))
            raise SolverBenchError(
                f"the discriminator is for states of {given}, the backbone has {asked}; "
                "use discriminator auto without pretrained"
            )
        return name

    def _chosen_file(self) -> Path | None:
        """The file that the discriminator begins from; None where it is drawn anew."""
        if self.game.has_file:
            return file_of(self.game.discriminator)
        if self.game.pretrained and self.task.discriminator is None:
            raise SolverBenchError(
                "this backbone has no pretrained discriminator; set pretrained: false"
            )
        return self.task.discriminator if self.game.pretrained else None

    def _seat(self, batch: Batch) -> None:
        """Make the discriminator and its optimiser where the first batch is."""
        if hasattr(self, "discriminator"):
            return
        prefix, held = "weights.", self._stored or {}
        weights = {k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)}
        made = of_state(weights) if weights else self.make_discriminator(batch)
        made.dtypes = self._pretrained.dtypes if self._pretrained else None
        self.discriminator = made.to(batch.noise)
        learned = dict(made.named_parameters())
        self.adam = adam_of(learned.values(), batch.noise.device)
        load_moments(self.adam, learned, {k: v.to(batch.noise.device) for k, v in held.items()})
        self._stored = None

    def skip_ahead(self) -> None:
        """Joint play."""
        self.iteration = max(self.iteration, self.alone)

    def _rivals(self, batch: Batch) -> Batch:
        """The discriminator's pairs: the teacher's samples, and fresh noise for the fakes."""
        if self.game.disc_batch is not None:
            assert self.task.draw is not None
            batch = self.task.draw(self.game.disc_batch)
        return replace(batch, noise=self.fresh_noise(batch))

    def _fakes(self, tableau: Tableau, rivals: Batch) -> Tensor:
        """The student's samples of the rivals' noise, (B, C, H, W)."""
        portions = self.task.portions

        def work() -> list[Tensor]:
            parts = portions.of(rivals)
            return [self.task.sample(tableau, p.noise, p.condition) for p in parts]

        with torch.no_grad():
            return torch.cat(portions.attempt(work, len(rivals)))

    def _pass(self, leaf: Tableau, batch: Batch, rivals: Batch) -> tuple[Tensor | None, Tensor]:
        """The batch's samples where they come with the rivals', else None; the rivals' samples."""
        if self.task.beside is not None and self._together and self.task.portions.size is None:
            try:
                return self.task.beside(leaf, batch, rivals)
            except torch.OutOfMemoryError:
                self._together = False  # one after the other needs less
                self.task.portions.halved += 1
        return None, self._fakes(leaf.detach(), rivals)

    def _judge(self, rivals: Batch, fake: Tensor, lr: float) -> dict[str, Tensor]:
        """The discriminator's step."""
        game, portions = self.game, self.task.portions
        pair, made = (rivals.target, fake), self.discriminator

        def work() -> dict[str, Tensor]:
            return discriminator_gradient(made, pair, game.gamma, game.loss, portions.size)

        made.requires_grad_(True)
        self.adam.param_groups[0]["lr"] = lr
        with stage("discriminator"):
            logs = portions.attempt(work, len(fake))
            step_where_finite(made, self.adam)
        made.requires_grad_(False)
        return {f"dis_{key}": value for key, value in logs.items()}

    def _play(self, batch: Batch, scale: float) -> dict[str, Tensor]:
        """Student and fakes, discriminator's step, solver's step."""
        with stage("solver algebra"):
            tableau = self.solver.tableau()
        rivals, leaf = self._rivals(batch), tableau.leaf()
        student, fake = self._pass(leaf, batch, rivals)
        logs = self._judge(rivals, fake, self.game.disc_lr)
        held = [] if student is None else [student]
        del student

        def losses_of(table: Tableau, part: Batch) -> dict[str, Tensor]:
            sample = held.pop() if held else None  # its graph serves once
            if sample is None or len(sample) != len(part):
                sample = self.task.sample(table, part.noise, part.condition)
            return self._judged(sample, part)

        found = self.descend(tableau, batch, losses_of, scale, leaf)
        return found | logs

    def _judged(self, sample: Tensor, part: Batch) -> dict[str, Tensor]:
        """What the solver minimises on a part of the batch, and its terms, (b,) each."""
        distance = self.task.compare(sample, part)
        with stage("discriminator"):
            with torch.no_grad():
                real = self.discriminator(part.target)
            fake = self.discriminator(sample)
            adversarial = generator_loss(real, fake, self.game.loss)
        terms = {"distance": distance, "gen_loss_adv": adversarial, "gen_fake_gen": fake - real}
        return {"loss": self.game.weight * adversarial + distance} | terms
