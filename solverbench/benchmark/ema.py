"""The average of the weights that a fit validates and keeps."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


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
