"""Two networks of digits, each trained on half of the classes: for solvers that change networks.

Their weights do not ship; ``solverbench backbone train digits-low`` makes them.
"""

from pathlib import Path

from solverbench.backbones.embedded import FOLDER, Digits
from solverbench.backbones.extractor import EmbeddedExtractor
from solverbench.errors import SolverBenchError

MADE = Path("backbones")  # where the command leaves weights, below the working folder


def place_of(name: str) -> Path:
    """The folder that holds the weights of a half: that of the package, else the command's own."""
    made = MADE / name
    return made if (made / f"{name}.safetensors").is_file() else FOLDER


class Half(Digits):
    """A half of the digits; arguments as of the shipped backbones."""

    def __init__(
        self,
        *,
        weights: str | None = None,
        t_min: float = 1e-3,
        channels_last: bool = True,
        device: str = "cpu",
    ) -> None:
        path = Path(weights) if weights else place_of(self.name) / f"{self.name}.safetensors"
        if not path.is_file():
            raise SolverBenchError(
                f"{self.name} needs weights=PATH, or those that ten core-minutes make: "
                f"solverbench backbone train {self.name}; there are none at {path}"
            )
        super().__init__(weights=str(path), t_min=t_min, channels_last=channels_last, device=device)


class DigitsLow(Half):
    """Handwritten digits 0 to 4, 8 x 8 grey, unconditional."""

    name = "digits-low"


class DigitsHigh(Half):
    """Handwritten digits 5 to 9, 8 x 8 grey, unconditional."""

    name = "digits-high"


class DigitsLowExtractor(EmbeddedExtractor):
    """The network of ``digits`` with the digits 0 to 4 as its reference."""

    def __init__(self) -> None:
        super().__init__("digits-low", place_of("digits-low"))


class DigitsHighExtractor(EmbeddedExtractor):
    """The network of ``digits`` with the digits 5 to 9 as its reference."""

    def __init__(self) -> None:
        super().__init__("digits-high", place_of("digits-high"))
