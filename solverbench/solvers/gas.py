"""Generalized Adversarial Solver: GS, trained against a discriminator as well."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from solverbench.discriminator import (
    LOSSES,
    PRESETS,
    R3GANDiscriminator,
    discriminator_step,
    generator_loss,
    load,
    of_state,
    preset,
)
from solverbench.errors import SolverBenchError
from solverbench.solvers.base import LearnableSolver, Setting, choice
from solverbench.solvers.fitting import (
    Batch,
    Distillation,
    FitTask,
    TrainingRule,
    load_moments,
    moments,
)
from solverbench.solvers.gs import GS

PREFIX = "discriminator."  # of its entries in a checkpoint
FITTING = {8: "small-8", 16: "small-16", 32: "r3gan-32", 64: "r3gan-64"}  # by pixels a side


@dataclass(frozen=True)
class Game:
    """How the two players train; see ``GAS`` for what the numbers mean."""

    weight: float
    gamma: float
    disc_lr: float
    loss: str
    discriminator: str
    pretrained: bool
    warm_start: int
    disc_warmup: int
    disc_warmup_lr: float

    def __post_init__(self) -> None:
        choice("loss", self.loss, LOSSES)
        choice("discriminator", self.discriminator, ("auto", *PRESETS))
        for name in ("weight", "gamma", "disc_lr", "warm_start", "disc_warmup", "disc_warmup_lr"):
            if not 0 <= getattr(self, name) < torch.inf:
                raise ValueError(f"{name} must be 0 or more; got {getattr(self, name)}")

    @property
    def alone(self) -> int:
        """Iterations before both play."""
        return self.warm_start + self.disc_warmup


class GAS(GS):
    """GS whose samples a discriminator must not tell from the teacher's.

    Source: GAS (arXiv 2510.17699), section 4, eq. 10 and 22, as the authors' code computes them.
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
        warm_start: int = 0,
        disc_warmup: int = 0,
        disc_warmup_lr: float | None = None,
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
            discriminator: sizes of one drawn anew, a preset or ``auto`` (by the state's size).
            pretrained: start from the backbone's own discriminator instead.
            warm_start: first iterations, of plain distillation.
            disc_warmup: iterations after those in which the discriminator learns alone.
            disc_warmup_lr: its learning rate in these; ``disc_lr`` by default.
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
        )

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
        SolverBenchError: where a pretrained discriminator is wanted and there is none, or both
            would never play.

    Source: gs-gas.md section 8.4.
    """

    def __init__(self, solver: LearnableSolver, game: Game, task: FitTask) -> None:
        super().__init__(solver, task)
        self.game, self.iteration = game, 0
        if 1 < task.iterations <= game.alone:
            raise SolverBenchError(
                f"gas would never meet its adversary: warm_start + disc_warmup is {game.alone}, "
                f"fit.iterations is {task.iterations}; lower the former"
            )
        self._pretrained = self._load_pretrained() if game.pretrained else None
        self._stored: dict[str, Tensor] | None = None  # of a checkpoint, until the first batch

    def step(self, batch: Batch, scale: float) -> dict[str, Tensor]:
        """One step of whoever plays in this phase.

        Where the discriminator learns alone, ``loss`` is its adversarial loss.
        """
        self.iteration += 1
        if self.iteration <= self.game.warm_start:
            return super().step(batch, scale)
        self._seat(batch)
        if self.iteration <= self.game.alone:
            logs = self._judge(batch, self.game.disc_warmup_lr)
            return {"loss": logs["dis_loss_adv"]} | logs
        return self._play(batch, scale)

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
        name = self.game.discriminator
        made = self._pretrained
        if made is None:
            name = FITTING.get(height, "") if name == "auto" else name
            if not name:
                sizes = ", ".join(map(str, FITTING))
                raise SolverBenchError(
                    f"gas has no discriminator for states of {height} x {width}; allowed: {sizes}"
                )
            made = preset(name, channels, self.task.rng)
        if (made.num_channels, made.resolution, made.resolution) != (channels, height, width):
            raise SolverBenchError(
                f"the discriminator is for states of {made.num_channels} x {made.resolution} x "
                f"{made.resolution}, the backbone has {channels} x {height} x {width}; "
                "use discriminator auto without pretrained"
            )
        return made

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

    def _load_pretrained(self) -> R3GANDiscriminator:
        if self.task.discriminator is None:
            raise SolverBenchError(
                "this backbone has no pretrained discriminator; set pretrained: false"
            )
        return load(self.task.discriminator)

    def _seat(self, batch: Batch) -> None:
        """Make the discriminator and its optimiser where the first batch is."""
        if hasattr(self, "discriminator"):
            return
        prefix, held = "weights.", self._stored or {}
        weights = {k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)}
        made = of_state(weights) if weights else self.make_discriminator(batch)
        self.discriminator = made.to(batch.noise)
        learned = dict(made.named_parameters())
        self.adam = torch.optim.Adam(learned.values())
        load_moments(self.adam, learned, {k: v.to(batch.noise.device) for k, v in held.items()})
        self._stored = None

    def _judge(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        """The discriminator's step, on the student's samples of fresh noise."""
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
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.task.clip)
        usable = bool(torch.isfinite(norm))
        if usable:
            self.optimiser.param_groups[0]["lr"] = scale * self.task.lr
            self.optimiser.step()
        named = {"distance": distance, "gen_loss_adv": adversarial, "gen_fake_gen": fake - real}
        logs |= {key: value.detach().mean() for key, value in named.items()}
        total = loss.detach() if usable else torch.full_like(loss.detach(), torch.nan)
        return {"loss": total, "grad_norm": norm.detach()} | logs
