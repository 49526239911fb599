"""Exact mixtures of Gaussians: a backbone whose denoiser is a formula, for tests and orders."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from solverbench.backbones.base import Backbone, Condition
from solverbench.schedule import VE, NoiseSchedule, VPDiscrete, VPLinear


class MixtureDenoiser(nn.Module):
    """Ideal denoiser of sum_k w_k N(mu_k, s_k^2 I), jointly over all dimensions.

    Args:
        means: (K, C, H, W).
        weights: (K,), sum 1.
        stds: (K,), positive.
    """

    means: Tensor
    weights: Tensor
    stds: Tensor

    def __init__(self, means: Tensor, weights: Tensor, stds: Tensor) -> None:
        super().__init__()
        for name, value in (("means", means), ("weights", weights), ("stds", stds)):
            self.register_buffer(name, value.double())

    def forward(self, x: Tensor, shat: Tensor, weights: Tensor | None = None) -> Tensor:
        """E[x0 | x0 + shat n = x].

        Args:
            x: (B, C, H, W).
            shat: EDM noise level, ().
            weights: mixture weights a row, (B, K); the mixture's own by default.

        Returns:
            (B, C, H, W), dtype of ``x``; computed in float64.
        """
        y = x.double()
        total = self.stds**2 + shat**2  # (K,)
        gap = y[:, None] - self.means  # (B, K, C, H, W)
        distance = gap.flatten(2).square().sum(2)
        logits = (self.weights if weights is None else weights).log() - distance / (2 * total)
        share = torch.softmax(logits - 0.5 * y[0].numel() * total.log(), dim=1)  # (B, K)
        keep = (shat**2 / total)[None, :, None, None, None]
        # mu + s^2 / (s^2 + shat^2) (y - mu) = y - shat^2 / (s^2 + shat^2) (y - mu)
        each = y[:, None] - keep * gap
        return (share[:, :, None, None, None] * each).sum(1).to(x.dtype)


class Gaussian(Backbone):
    """A mixture of Gaussians in any frame, with its exact denoiser.

    Args:
        means: (K, C, H, W) as nested lists or tensor; drawn from ``seed`` where left away.
        weights: (K,); equal ones where left away.
        stds: (K,); drawn from ``seed`` where left away.
        shape: (C, H, W) of drawn means.
        num: K of a drawn mixture.
        frame: ``ve``, ``vp-linear``, ``vp-discrete-ldm`` or ``vp-discrete-sd``.
        output: what the network gives: ``x0``, ``eps`` or ``v``.
        t_min: where solvers stop; the frame's own by default.
        seed: of a drawn mixture.
        device: where it lives.
    """

    name = "gaussian"

    def __init__(  # noqa: PLR0913 (the options of a mixture)
        self,
        *,
        means: Sequence[object] | Tensor | None = None,
        weights: Sequence[float] | Tensor | None = None,
        stds: Sequence[float] | Tensor | None = None,
        shape: Sequence[int] = (1, 4, 4),
        num: int = 4,
        frame: str = "vp-linear",
        output: str = "x0",
        t_min: float | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        rng = torch.Generator().manual_seed(seed)
        drawn = torch.randn(num, *shape, generator=rng, dtype=torch.float64)
        spread = 0.1 + 0.3 * torch.rand(num, generator=rng, dtype=torch.float64)
        mu = drawn if means is None else torch.as_tensor(means, dtype=torch.float64)
        s = spread if stds is None else torch.as_tensor(stds, dtype=torch.float64)
        given = [1.0] * len(mu) if weights is None else weights
        w = torch.as_tensor(given, dtype=torch.float64)
        if mu.ndim != 4 or not len(mu) == len(s) == len(w):
            raise ValueError(
                f"means (K, C, H, W), weights (K,), stds (K,) need one K; got "
                f"{tuple(mu.shape)}, {tuple(w.shape)}, {tuple(s.shape)}"
            )
        if not (bool((s > 0).all()) and bool((w > 0).all())):
            raise ValueError("weights and stds of a mixture must be positive")
        if output not in ("x0", "eps", "v"):
            raise ValueError(f"output is {output!r}; allowed: x0, eps, v")
        self.device = torch.device(device)
        self.network = MixtureDenoiser(mu, w.double() / w.double().sum(), s).to(self.device)
        self.schedule = frame_of(frame, t_min)
        self.t_floor = min(1e-5, self.schedule.t_min)
        self.output = output  # type: ignore[assignment]
        self.state_shape = (mu.shape[1], mu.shape[2], mu.shape[3])
        digest = hashlib.sha256()
        for tensor in (mu, w, s):
            digest.update(tensor.double().contiguous().numpy().tobytes())
        self.weights_sha256 = digest.hexdigest()

    def raw(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """The exact prediction, in the form that ``output`` names."""
        alpha, sigma = self.schedule.alpha(t).to(x), self.schedule.sigma(t).to(x)
        x0: Tensor = self.network(x / alpha, self.schedule.shat(t).to(x.device))
        if self.output == "x0":
            return x0
        eps = (x - alpha * x0) / sigma
        return eps if self.output == "eps" else alpha * eps - sigma * x0


def frame_of(name: str, t_min: float | None) -> NoiseSchedule:
    """The noise schedule that a frame's name means.

    Raises:
        ValueError: for an unknown name or a ``t_min`` outside the schedule.
    """
    frames: dict[str, NoiseSchedule] = {
        "ve": VE(),
        "vp-linear": VPLinear(),
        "vp-discrete-ldm": VPDiscrete(0.0015, 0.0195),
        "vp-discrete-sd": VPDiscrete(0.00085, 0.012),
    }
    if name not in frames:
        raise ValueError(f"frame is {name!r}; allowed: {', '.join(frames)}")
    schedule = frames[name]
    if t_min is not None:
        if not (math.isfinite(t_min) and 0 < t_min < schedule.t_max):
            raise ValueError(f"t_min is {t_min}; it must lie between 0 and {schedule.t_max}")
        schedule.t_min = t_min
    return schedule
