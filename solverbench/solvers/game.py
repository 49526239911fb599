"""Options of an adversarial game between a solver and a discriminator."""

from dataclasses import dataclass

from solverbench.discriminator import LOSSES, PRESETS, check_precision
from solverbench.published_discriminator import ENDINGS, published
from solverbench.solvers.base import choice
from solverbench.solvers.fitting import check_rates

FITTING = {8: "small-8", 16: "small-16", 32: "r3gan-32", 64: "r3gan-64"}  # by pixels a side
OWN = ("auto", *PRESETS)  # drawn anew


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
