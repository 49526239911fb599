"""Noise schedules, time grids and predictions: the words that solvers and backbones share.

Everything here is float64 and differentiable. A state is x_t = alpha(t) x0 + sigma(t) eps.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from solverbench.errors import unknown_name
from solverbench.stored_schedules import STORED_SIGMAS, stored

Output = Literal["x0", "eps", "v"]
Time = Tensor | float


def float64(value: Time) -> Tensor:
    """A float64 tensor; gradients pass."""
    return torch.as_tensor(value, dtype=torch.float64)


class NoiseSchedule(ABC):
    """Signal and noise scales of a forward process, and the times between which solvers run.

    Attributes:
        t_max: noisiest time T.
        t_min: where solvers stop unless told otherwise.
        prior_std: standard deviation of the state at ``t_max`` that a sampler starts from.
    """

    t_max: float
    t_min: float
    prior_std: float = 1.0

    @abstractmethod
    def log_alpha(self, t: Time) -> Tensor:
        """Log of the signal scale; any shape in, same shape out."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """Noise scale; any shape in, same shape out."""

    @abstractmethod
    def inverse_lam(self, lam: Time) -> Tensor:
        """The time at which ``lam`` is reached; any shape in, same shape out."""

    @abstractmethod
    def facts(self) -> dict[str, str | float]:
        """What identifies the frame: its kind and constants (not ``t_min``)."""

    def alpha(self, t: Time) -> Tensor:
        """Signal scale; any shape in, same shape out."""
        return self.log_alpha(t).exp()

    def log_alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        """Both, shape of ``t`` each; a schedule that forms one from the other does so once."""
        return self.log_alpha(t), self.sigma(t)

    def lam(self, t: Time) -> Tensor:
        """log(alpha / sigma), called logSNR in solver papers."""
        return self.log_alpha(t) - self.sigma(t).log()

    def shat(self, t: Time) -> Tensor:
        """Sigma / alpha, the noise level of EDM."""
        return torch.exp(-self.lam(t))

    def grid(self, t: Tensor, t_eval: Tensor | None = None) -> "TimeGrid":
        """The grid on nodes ``t`` (N + 1,), network times ``t_eval`` (N,) if they differ."""
        own = t[:-1] if t_eval is None else t_eval
        log_alpha, sigmas = self.log_alpha_sigma(torch.cat([t, own]))  # one pass over all
        alpha, alpha_eval = torch.split(log_alpha.exp(), len(t))
        sigma, sigma_eval = torch.split(sigmas, len(t))
        lam = log_alpha[: len(t)] - sigma.log()
        return TimeGrid(t, own, alpha, sigma, lam, alpha_eval, sigma_eval)


class VE(NoiseSchedule):
    """Variance exploding: alpha = 1, sigma = t. The frame of EDM.

    Source: Karras et al. (2022), section 3.
    """

    def __init__(self, t_min: float = 0.002, t_max: float = 80.0) -> None:
        self.t_min, self.t_max, self.prior_std = t_min, t_max, t_max

    def log_alpha(self, t: Time) -> Tensor:
        """Zero."""
        return torch.zeros_like(float64(t))

    def sigma(self, t: Time) -> Tensor:
        """The time itself."""
        return float64(t)

    def inverse_lam(self, lam: Time) -> Tensor:
        """exp(-lam)."""
        return torch.exp(-float64(lam))

    def facts(self) -> dict[str, str | float]:
        """Frame ``ve``."""
        return {"frame": "ve", "t_max": self.t_max}


class VP(NoiseSchedule):
    """Variance preserving; ``expm1`` keeps sigma exact near 0, where 1 - exp(.) loses digits."""

    t_max = 1.0

    def sigma(self, t: Time) -> Tensor:
        """Noise scale, sqrt(1 - alpha^2)."""
        return self.log_alpha_sigma(t)[1]

    def log_alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        """The second from the first."""
        log_alpha = self.log_alpha(t)
        return log_alpha, torch.sqrt(-torch.expm1(2 * log_alpha))


class VPLinear(VP):
    """Variance preserving with a linear beta(t) on [0, 1].

    Source: Song et al. (2021), appendix C: log alpha = -t^2 (b1 - b0) / 4 - t b0 / 2.
    """

    def __init__(self, beta_0: float = 0.1, beta_1: float = 20.0, t_min: float = 1e-3) -> None:
        self.beta_0, self.beta_1, self.t_min = beta_0, beta_1, t_min

    def log_alpha(self, t: Time) -> Tensor:
        """Log of the signal scale."""
        t = float64(t)
        return -(t**2) * (self.beta_1 - self.beta_0) / 4 - t * self.beta_0 / 2

    def shat(self, t: Time) -> Tensor:
        """sqrt(1 / alpha^2 - 1), without the detour over lambda."""
        return torch.sqrt(torch.expm1(-2 * self.log_alpha(t)))

    def inverse_lam(self, lam: Time) -> Tensor:
        """The root of the quadratic in t, in its stable form."""
        lam, slope = float64(lam), self.beta_1 - self.beta_0
        q = 2 * slope * torch.nn.functional.softplus(-2 * lam, threshold=math.inf)
        return q / ((torch.sqrt(self.beta_0**2 + q) + self.beta_0) * slope)

    def facts(self) -> dict[str, str | float]:
        """Frame ``vp-linear`` and its two constants."""
        return {"frame": "vp-linear", "beta_0": self.beta_0, "beta_1": self.beta_1}


def vp_wrapped(t_min: float, sigma_min: float, sigma_max: float) -> VPLinear:
    """A VP schedule for an EDM network, its constants solved from the noise levels at both ends.

    Args:
        t_min: last time of the run.
        sigma_min: smallest EDM noise level the network knows.
        sigma_max: largest one.

    Returns:
        The linear schedule with shat(t_min) and shat(1) clipped to the network's range, starting
        from beta_d 19.9 and beta_min 0.1 (which come back where nothing is clipped).

    Raises:
        ValueError: where the network knows none of the levels in between.

    Source: GAS authors' code, as in gs-gas.md section 2.1.
    """
    reference = VPLinear(0.1, 20.0, t_min)
    low = max(float(reference.shat(t_min)), sigma_min)
    high = min(float(reference.shat(1.0)), sigma_max)
    if not low < high:
        raise ValueError(
            f"the network knows noise levels {sigma_min:g} to {sigma_max:g}, none of the VP frame"
        )
    return wrapped_between(low, high, t_min)


def wrapped_between(low: float, high: float, t_min: float = 1e-3) -> VPLinear:
    """The linear VP schedule with shat(t_min) = low and shat(1) = high.

    Source: solvers.md section 1.1.
    """
    beta_d = 2 * (math.log1p(low**2) / t_min - math.log1p(high**2)) / (t_min - 1)
    beta_min = math.log1p(high**2) - beta_d / 2
    return VPLinear(beta_min, beta_min + beta_d, t_min)


class VPDiscrete(VP):
    """Variance preserving on a table of 1000 steps, log alpha piecewise linear between them.

    Knots t_k = k / 1000, k = 1 .. 1000; outside, the end segments go on. The network's own time is
    1000 t - 1, a real number.

    Args:
        beta_first: first beta of the table (``scaled_linear``: linear in its square root).
        beta_last: last beta.
        t_min: where solvers stop.
        num: length of the table.

    Source: Lu et al. (2022), DPM-Solver, appendix D.2.
    """

    def __init__(
        self, beta_first: float, beta_last: float, t_min: float = 1e-3, num: int = 1000
    ) -> None:
        self.beta_first, self.beta_last, self.t_min, self.num = beta_first, beta_last, t_min, num
        root = torch.linspace(beta_first**0.5, beta_last**0.5, num, dtype=torch.float64)
        self.alphas_cumprod = torch.cumprod(1 - root**2, dim=0)
        self.knots = torch.arange(1, num + 1, dtype=torch.float64) / num
        self.values = 0.5 * self.alphas_cumprod.log()

    def log_alpha(self, t: Time) -> Tensor:
        """Log of the signal scale."""
        return _interpolate(float64(t), self.knots, self.values)

    def inverse_lam(self, lam: Time) -> Tensor:
        """The same table read backwards."""
        log_alpha = -0.5 * torch.nn.functional.softplus(-2 * float64(lam), threshold=math.inf)
        return _interpolate(log_alpha, self.values.flip(0), self.knots.flip(0))

    def facts(self) -> dict[str, str | float]:
        """Frame ``vp-discrete`` and the two ends of its table."""
        ends = {"beta_first": self.beta_first, "beta_last": self.beta_last}
        return {"frame": "vp-discrete", **ends, "num": float(self.num)}


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear through increasing ``knots``; the end segments go on outside."""
    right = torch.searchsorted(knots, x.detach().contiguous()).clamp(1, len(knots) - 1)
    x0, x1, y0, y1 = knots[right - 1], knots[right], values[right - 1], values[right]
    return y0 + (x - x0) * (y1 - y0) / (x1 - x0)


@dataclass(frozen=True, eq=False)
class TimeGrid:
    """N steps on N + 1 nodes, noisiest first.

    Attributes:
        t: nodes, (N + 1,), strictly decreasing.
        t_eval: times told to the network, (N,); ``t[:-1]`` unless they are decoupled.
        alpha: signal scale at the nodes, (N + 1,).
        sigma: noise scale at the nodes, (N + 1,).
        lam: log(alpha / sigma) at the nodes, (N + 1,).
        alpha_eval: signal scale at the network times, (N,).
        sigma_eval: noise scale at the network times, (N,).
    """

    t: Tensor
    t_eval: Tensor
    alpha: Tensor
    sigma: Tensor
    lam: Tensor
    alpha_eval: Tensor
    sigma_eval: Tensor

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.t) - 1


@dataclass(frozen=True, eq=False)
class Prediction:
    """One network call, readable as data or noise.

    The noise is formed at the time told to the network, the data at the conversion time. The two
    differ for GS and GAS; where they agree, data is the network's own estimate.

    Attributes:
        x: the state that went in, any shape.
        raw: what came out, shape of ``x``.
        output: what ``raw`` is: ``x0``, ``eps`` or ``v`` = alpha eps - sigma x0.
        model: (alpha, sigma) at the time told to the network.
        convert: (alpha, sigma) at the time of conversion, None where it is the same.

    Source: gs-gas.md section 3.
    """

    x: Tensor
    raw: Tensor
    output: Output
    model: tuple[Tensor, Tensor]
    convert: tuple[Tensor, Tensor] | None = None

    @property
    def eps(self) -> Tensor:
        """Noise prediction, shape of ``x``."""
        alpha, sigma = self.model
        if self.output == "eps":
            return self.raw
        if self.output == "v":
            return (alpha * self.raw + sigma * self.x) / (alpha**2 + sigma**2)
        return (self.x - alpha * self.raw) / sigma

    @property
    def x0(self) -> Tensor:
        """Data prediction, shape of ``x``."""
        alpha, sigma = self.convert or self.model
        if self.convert is None and self.output == "x0":
            return self.raw
        if self.convert is None and self.output == "v":
            return (alpha * self.x - sigma * self.raw) / (alpha**2 + sigma**2)
        return (self.x - sigma * self.eps) / alpha


Ends = tuple[float, float, int]  # T, eps, N


def _time_uniform(schedule: NoiseSchedule, ends: Ends, rho: float) -> Tensor:
    start, end, num = ends
    return start + (end - start) * _fractions(num)


def _time_quadratic_shifted(schedule: NoiseSchedule, ends: Ends, rho: float) -> Tensor:
    start, end, num = ends
    return end + (start - end) * (1 - _fractions(num)) ** 2


def _time_quadratic_sqrt(schedule: NoiseSchedule, ends: Ends, rho: float) -> Tensor:
    start, end, num = ends
    return (math.sqrt(start) + (math.sqrt(end) - math.sqrt(start)) * _fractions(num)) ** 2


def _logsnr(schedule: NoiseSchedule, ends: Ends, rho: float) -> Tensor:
    start, end = schedule.lam(ends[0]), schedule.lam(ends[1])
    return schedule.inverse_lam(start + (end - start) * _fractions(ends[2]))


def _edm(schedule: NoiseSchedule, ends: Ends, rho: float) -> Tensor:
    start, end = schedule.shat(ends[0]) ** (1 / rho), schedule.shat(ends[1]) ** (1 / rho)
    return schedule.inverse_lam(-rho * torch.log(start + (end - start) * _fractions(ends[2])))


def _vp_time(schedule: NoiseSchedule, ends: Ends, rho: float) -> Tensor:
    low, high = float(schedule.shat(ends[1])), float(schedule.shat(ends[0]))
    wrapped = wrapped_between(low, high)
    t = (1 + (wrapped.t_min ** (1 / rho) - 1) * _fractions(ends[2])) ** rho
    return schedule.inverse_lam(wrapped.lam(t))


def _fractions(num: int) -> Tensor:
    return torch.arange(num + 1, dtype=torch.float64) / num


GRIDS: dict[str, tuple[Callable[[NoiseSchedule, Ends, float], Tensor], float]] = {
    "time-uniform": (_time_uniform, 1.0),
    "time-quadratic-shifted": (_time_quadratic_shifted, 2.0),
    "time-quadratic-sqrt": (_time_quadratic_sqrt, 2.0),
    "logsnr": (_logsnr, 1.0),
    "edm": (_edm, 7.0),
    "vp-time": (_vp_time, 2.0),
}


def nodes(
    schedule: NoiseSchedule,
    num_steps: int,
    name: str | Sequence[float] = "logsnr",
    t_min: float | None = None,
    rho: float | None = None,
) -> Tensor:
    """The nodes of a named, stored or explicit grid.

    Args:
        schedule: noise schedule.
        num_steps: N.
        name: one of ``GRIDS``, a stored table (``gits-sd``, ``ays-sd15``, ...), or N + 1 times.
        t_min: last time; the schedule's own by default. Stored and explicit grids end as listed.
        rho: exponent of ``edm`` (7) and ``vp-time`` (2); the other grids have none.

    Returns:
        (N + 1,), strictly decreasing, float64.

    Raises:
        SolverBenchError: for an unknown name.
        ValueError: for a list of the wrong length or order, or an end outside the schedule.

    Source: solvers.md section 3, which says what other names these grids carry.
    """
    end = schedule.t_min if t_min is None else t_min
    if not 0 < end < schedule.t_max:
        raise ValueError(f"t_min is {end}; it must lie between 0 and {schedule.t_max}")
    if rho is not None and (name not in ("edm", "vp-time") or rho <= 0):
        raise ValueError(f"rho is positive and for the grids edm and vp-time; got {rho}, {name!r}")
    if not isinstance(name, str):
        t = torch.tensor(list(name), dtype=torch.float64)
    elif name in STORED_SIGMAS:
        t = schedule.inverse_lam(-stored(name, num_steps).log())
    elif name in GRIDS:
        formula, default = GRIDS[name]
        return formula(schedule, (schedule.t_max, end, num_steps), default if rho is None else rho)
    else:
        raise unknown_name("schedule", name, [*GRIDS, *STORED_SIGMAS], "solverbench list schedules")
    if len(t) != num_steps + 1 or bool((t.diff() >= 0).any()) or float(t[-1]) <= 0:
        raise ValueError(f"a schedule of {num_steps} steps needs {num_steps + 1} decreasing times")
    if abs(float(t[0]) - schedule.t_max) > 1e-3 * schedule.t_max:
        raise ValueError(f"a schedule starts where samples do, at {schedule.t_max}; got {t[0]:g}")
    return t
