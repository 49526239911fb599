"""EDM networks as backbones, from published pickles or converted safetensors."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from solverbench.backbones.base import Backbone, Condition
from solverbench.backbones.edm_files import load_network
from solverbench.errors import SolverBenchError
from solverbench.schedule import VE, NoiseSchedule, vp_wrapped

LOWEST = 1e-4  # smallest VP time at which published runs use a network


class EDM(Backbone):
    """Any EDM network, in the VP frame of the paper or in EDM's own.

    Args:
        weights: published ``.pkl`` or converted ``.safetensors`` file; there is no default.
        frame: ``vp`` (linear, as the paper runs it) or ``ve``, in which t is sigma.
        t_min: where students stop; 1e-3 in the VP frame and 0.002 in the VE frame by default.
        channels_last: memory format of the network.
        device: where it lives.

    An iDDPM network is told whole noise levels only: the gradient in time is that of the factors
    around it, between two levels.

    Source: gs-gas.md sections 2.1 and 3.
    """

    name = "edm"

    def __init__(
        self,
        *,
        weights: str | None = None,
        frame: Literal["vp", "ve"] = "vp",
        t_min: float | None = None,
        channels_last: bool = False,
        device: str = "cpu",
    ) -> None:
        if weights is None:
            raise SolverBenchError(f"{self.name} needs weights=PATH, a .pkl or .safetensors file")
        self.edm, self.facts = load_network(Path(weights))
        self.network = self.edm
        self.device = torch.device(device)
        self.edm.to(self.device)
        if channels_last:
            for p in self.edm.parameters():
                if p.ndim == 4:
                    p.data = p.data.contiguous(memory_format=torch.channels_last)
        self.weights_sha256 = self.facts.file_sha256
        given = self.edm.given
        self.num_classes: int = given.label_dim
        self.classes = torch.arange(self.num_classes, device=self.device)
        self.state_shape = (given.img_channels, given.img_resolution, given.img_resolution)
        self.schedule = frame_of(frame, t_min, self.edm.sigma_min, self.edm.sigma_max)
        low = max(self.edm.sigma_min, 0.002 if frame == "ve" else 0.0)
        known = float(self.schedule.inverse_lam(-math.log(low))) if low else 0.0
        self.t_floor = min(self.schedule.t_min, known if frame == "ve" else max(LOWEST, known))

    def denoise(
        self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None
    ) -> Tensor:
        """The network's own estimate of x0, in EDM units.

        Args:
            x: x0 + sigma n, (B, C, H, W).
            sigma: noise levels, () or (B,).
            class_labels: classes (B,), integers, or one-hot rows (B, K); none by default.

        Returns:
            (B, C, H, W), dtype of ``x``; computed in float32.
        """
        rows = None
        if class_labels is not None and self.num_classes:
            rows = class_labels.to(x.device)
            if rows.ndim == 1:
                rows = (rows[:, None] == self.classes).float()
            elif rows.shape[1] != self.num_classes:
                raise ValueError(f"class_labels have {self.num_classes} columns, one a class")
        done: Tensor = self.network(x, torch.as_tensor(sigma, device=x.device), rows)
        return done.to(x.dtype)

    def raw(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """The network's estimate of x0 for x (B, C, H, W) at time t ()."""
        y = x / self.schedule.alpha(t).to(x)
        return self.denoise(y, self.schedule.shat(t), condition.labels if condition else None)

    def condition(self, seeds: Sequence[int]) -> Condition | None:
        """Class = seed mod number of classes."""
        if not self.num_classes:
            return None
        return Condition(torch.tensor([s % self.num_classes for s in seeds], device=self.device))


def frame_of(frame: str, t_min: float | None, sigma_min: float, sigma_max: float) -> NoiseSchedule:
    """The schedule of a frame, clipped to the network's range of noise levels.

    Raises:
        ValueError: for an unknown frame, or a ``t_min`` outside it.
    """
    if frame not in ("vp", "ve"):
        raise ValueError(f"frame is {frame!r}; allowed: vp, ve")
    if frame == "ve":
        low, high = max(0.002, sigma_min) if t_min is None else t_min, min(80.0, sigma_max)
        if not sigma_min <= low < high or low <= 0:
            raise ValueError(f"t_min is {low}; it lies between {sigma_min:g} and {high:g}")
        return VE(low, high)
    end = 1e-3 if t_min is None else t_min
    if not 0 < end < 1:
        raise ValueError(f"t_min is {end}; it must lie between 0 and 1")
    return vp_wrapped(end, sigma_min, sigma_max)
