"""Generalized Adversarial Solver: GS, trained against a discriminator as well."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverbench import tensorfile
from solverbench.discriminator import (
    FORMAT,
    LATENT,
    LOSSES,
    PRESETS,
    R3GANDiscriminator,
    check_precision,
    discriminator_step,
    generator_loss,
    of_state,
    preset,
)
from solverbench.errors import SolverBenchError
from solverbench.files import sha256_of
from solverbench.published_discriminator import ENDINGS, file_of, load_file, published
from solverbench.solvers.base import LearnableSolver, Setting, choice
from solverbench.solvers.fitting import (
    Batch,
    Distillation,
    FitTask,
    TrainingRule,
    check_rates,
    load_moments,
    moments,
)
from solverbench.solvers.gs import GS

PREFIX = "discriminator."  # of its entries in a checkpoint
FITTING = {8: "small-8", 16: "small-16", 32: "r3gan-32", 64: "r3gan-64"}  # by pixels a side
OWN = ("auto", *PRESETS)  # drawn anew
FOREKNOWLEDGE = (
    "pretrained discriminator: it has seen more samples of the teacher and of other solvers, "
    "which the fit cost does not count"
)
OUTSIDE = (
    "published discriminator: it has been trained on images of its data set, which the fit cost "
    "does not count"
)


@dataclass(frozen=True)
class Game:
    """How the two players train; see ``GAS`` for what the numbers mean."""

    weight: float
    gamma: float
    disc_lr: float
    loss: str
    discriminator: str
    pretrained: bool
    warm_start: float
    disc_warmup: float
    disc_warmup_lr: float
    disc_batch: int | None
    joint_lr: float | None
    disc_precision: str

    def __post_init__(self) -> None:
        choice("loss", self.loss, LOSSES)
        check_precision(self.disc_precision)
        if not self.has_file:
            choice("discriminator", self.discriminator, (*OWN, *published(), "a path"))
        names = ("weight", "gamma", "disc_lr", "disc_warmup_lr", "joint_lr")
        check_rates({name: getattr(self, name) or 0.0 for name in names})
        if self.disc_batch is not None and self.disc_batch < 1:
            raise ValueError(f"disc_batch is at least 1; got {self.disc_batch}")
        shares = self.warm_start, self.disc_warmup
        if not (min(shares) >= 0 and sum(shares) < 1):
            raise ValueError(
                "warm_start and disc_warmup are shares of the budget, at least 0 each and below 1 "
                f"together; got {shares[0]} and {shares[1]}"
            )
        if self.disc_precision == "stored" and not self.has_file:
            raise ValueError("disc_precision stored is for a discriminator of a file")
        if self.pretrained and self.discriminator != "auto":
            raise ValueError(
                f"discriminator is {self.discriminator!r} and pretrained true: the backbone's own "
                "has sizes of its own; leave one of the two out"
            )

    @property
    def has_file(self) -> bool:
        """Whether the discriminator is a published or converted file, by path or by name."""
        name = self.discriminator
        return name not in OWN and (name.endswith(ENDINGS) or name in published())


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
            logs = self._judge(batch, self.game.disc_warmup_lr)
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
        self.adam = torch.optim.Adam(learned.values())
        load_moments(self.adam, learned, {k: v.to(batch.noise.device) for k, v in held.items()})
        self._stored = None

    def _judge(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        """The discriminator's step, on the student's samples of fresh noise."""
        if self.game.disc_batch is not None:
            assert self.task.draw is not None
            batch = self.task.draw(self.game.disc_batch)
        with torch.no_grad():
            tableau = self.solver.tableau()
            fake = self.task.sample(tableau, self.fresh_noise(batch), batch.condition)
        self.discriminator.requires_grad_(True)
        self.adam.param_groups[0]["lr"] = lr
        game, pair = self.game, (batch.target, fake)
        logs = discriminator_step(self.discriminator, self.adam, pair, game.gamma, game.loss)
        self.discriminator.requires_grad_(False)
        return {f"dis_{key}": value for key, value in logs.items()}

    def _play(self, batch: Batch, scale: float) -> dict[str, Tensor]:
        """Student, discriminator's step, solver's step."""
        sample = self.task.sample(self.solver.tableau(), batch.noise, batch.condition)
        distance = self.task.distance(sample, batch.target)
        logs = self._judge(batch, self.game.disc_lr)
        with torch.no_grad():
            real = self.discriminator(batch.target)
        fake = self.discriminator(sample)
        adversarial = generator_loss(real, fake, self.game.loss)
        loss = (self.game.weight * adversarial + distance).mean()
        named = {"distance": distance, "gen_loss_adv": adversarial, "gen_fake_gen": fake - real}
        logs |= {key: value.detach().mean() for key, value in named.items()}
        return self.descend(loss, scale) | logs
