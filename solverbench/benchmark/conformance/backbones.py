"""Checks of a backbone."""

from typing import Any

import torch
from torch import Tensor, nn

from solverbench.backbones.base import Backbone
from solverbench.benchmark.conformance.checks import Check, content, demand, run_probes
from solverbench.benchmark.load import load_backbone


def check_backbone(name: str, **options: Any) -> list[Check]:
    """Check a backbone.

    Args:
        name: registered name.
        **options: keywords of its class.

    Returns:
        A check a requirement.

    Raises:
        SolverBenchError: for an unknown name or option, or missing weights.
    """
    backbone = load_backbone(name, **options)
    return run_probes(
        {
            "schedule can be inverted": lambda: _inverted(backbone),
            "noise and conditions follow from seeds alone": lambda: _seeded(backbone),
            "predictions add up to the state": lambda: _consistent(backbone),
            "differentiable in state and time": lambda: _differentiable(backbone),
            "counts what goes through the network": lambda: _counting(backbone),
            "goes on a little outside its times": lambda: _outside(backbone),
            "same call twice gives the same bits": lambda: _pure(backbone),
            "rows of a batch do not mix": lambda: _unmixed(backbone),
            "decodes to images, differentiably": lambda: _decodes(backbone),
            "parameters are frozen": lambda: _frozen(backbone),
        }
    )


def _states(backbone: Backbone) -> list[tuple[Tensor, Tensor]]:
    """States (3, C, H, W) as a sampler meets them, with times ()."""
    schedule, noise = backbone.schedule, backbone.noise(range(3))
    ends = [schedule.lam(t) for t in (schedule.t_max, schedule.t_min)]
    times = [schedule.inverse_lam(ends[0] + w * (ends[1] - ends[0])) for w in (0.0, 0.3, 0.6, 1.0)]
    scales = [torch.hypot(schedule.alpha(t), schedule.sigma(t)).to(noise) for t in times]
    return [(scale * noise, t) for scale, t in zip(scales, times, strict=True)]


def _inverted(backbone: Backbone) -> str:
    schedule = backbone.schedule
    t = torch.linspace(schedule.t_min, schedule.t_max, 50, dtype=torch.float64)
    lam = schedule.lam(t)
    demand(bool((lam.diff() < 0).all()), "lambda does not fall with time")
    gap = float((schedule.inverse_lam(lam) / t - 1).abs().max())
    return demand(gap < 1e-8, f"inverse_lam(lam(t)) off by {gap:.1e}")  # float64, condition 1e4


def _seeded(backbone: Backbone) -> str:
    seeds = [3, 50_000, 1, 3]
    noise, condition = backbone.noise(seeds), backbone.condition(seeds)
    shape = (len(seeds), *backbone.state_shape)
    demand(tuple(noise.shape) == shape, f"noise {tuple(noise.shape)}; expected {shape}")
    for row, seed in enumerate(seeds):
        alone = backbone.noise([seed])
        demand(torch.equal(noise[row : row + 1], alone), f"noise of seed {seed} depends on others")
        if condition is not None:
            own, single = condition[row : row + 1], backbone.condition([seed])
            equal = content(vars(own)) == content(vars(single))
            demand(equal, f"the condition of seed {seed} depends on others")
    spread = float(backbone.noise(range(64)).std())
    return demand(0.8 < spread < 1.25, f"standard deviation of noise {spread:.2f}, to be 1")


def _consistent(backbone: Backbone) -> str:
    gaps, condition = [], backbone.condition(range(3))
    with torch.no_grad():
        for x, t in _states(backbone):
            p = backbone.predict(x, t, condition)
            demand(p.x0.shape == x.shape and p.eps.shape == x.shape, f"{p.x0.shape} from {x.shape}")
            demand(p.x0.dtype == x.dtype, f"{p.x0.dtype} from {x.dtype}")
            alpha, sigma = backbone.schedule.alpha(t).to(x), backbone.schedule.sigma(t).to(x)
            gap = (alpha * p.x0 + sigma * p.eps - x).abs().max() / x.abs().max()
            gaps.append(float(gap))
    return demand(max(gaps) < 1e-5, f"off by {max(gaps):.1e} in float32")  # some roundings


def _differentiable(backbone: Backbone) -> str:
    for x, t in _states(backbone):
        x, t = x.clone().requires_grad_(), t.clone().requires_grad_()
        backbone.evaluate(x, t, backbone.condition(range(3))).square().mean().backward()  # type: ignore[no-untyped-call]
        for what, grad in (("the state", x.grad), ("the time", t.grad)):
            used = grad is not None and bool(grad.isfinite().all()) and bool(grad.any())
            demand(used, f"no usable gradient to {what} at t = {float(t.detach()):g}")
    return "finite and not zero at 4 times"


def _counting(backbone: Backbone) -> str:
    x, t = _states(backbone)[1]
    with backbone.counting() as count, torch.no_grad():
        backbone.evaluate(x, t, backbone.condition(range(3)))
        backbone.predict(x, t, backbone.condition(range(3)))
    right = count.calls == 2 and count.samples == 6 and count.rows >= 6
    return demand(right, f"2 calls of 3 samples: {count.calls} calls, {count.rows} rows")


def _outside(backbone: Backbone) -> str:
    noise, schedule = backbone.noise(range(3)), backbone.schedule
    with torch.no_grad():
        for t in (0.95 * schedule.t_min, 1.001 * schedule.t_max):
            p = backbone.predict(float(schedule.sigma(t)) * noise, t, backbone.condition(range(3)))
            demand(bool(p.x0.isfinite().all() and p.eps.isfinite().all()), f"breaks at t = {t:g}")
    return "finite 5% below t_min and 0.1% above t_max"


@torch.no_grad()
def _pure(backbone: Backbone) -> str:
    for x, t in _states(backbone):
        given = x.clone()
        first, again = (backbone.evaluate(x, t, backbone.condition(range(3))) for _ in range(2))
        demand(torch.equal(x, given), "the state that went in was changed")
        demand(torch.equal(first, again), f"two calls differ at t = {float(t):g}")
    return "4 times"


@torch.no_grad()
def _unmixed(backbone: Backbone) -> str:
    gaps = []
    for x, t in _states(backbone):
        whole = backbone.evaluate(x, t, backbone.condition(range(3)))
        rows = [backbone.evaluate(x[i : i + 1], t, backbone.condition([i])) for i in range(3)]
        gaps.append(float((whole - torch.cat(rows)).abs().max() / whole.abs().max()))
    return demand(max(gaps) < 1e-4, f"differ by {max(gaps):.1e}")  # convolutions may regroup


def _decodes(backbone: Backbone) -> str:
    x = backbone.noise(range(3)).requires_grad_()
    images = backbone.decode(x)
    shape = tuple(images.shape)
    demand(len(shape) == 4 and shape[0] == 3 and shape[1] in (1, 3), f"images of shape {shape}")
    images.square().mean().backward()  # type: ignore[no-untyped-call]
    demand(x.grad is not None and bool(x.grad.isfinite().all()), "no gradient through decode")
    return f"{tuple(x.shape)} to {shape}"


def _frozen(backbone: Backbone) -> str:
    modules = [value for value in vars(backbone).values() if isinstance(value, nn.Module)]
    free = [key for m in modules for key, p in m.named_parameters() if p.requires_grad]
    demand(not free, f"{len(free)} parameters want gradients, first {free[:1]}")
    training = backbone.network.training and any(True for _ in backbone.network.parameters())
    return demand(not training, "no parameter wants gradients, eval mode")
