"""Checks of a schedule optimiser, on a mixture of Gaussians."""

import torch
from torch import Tensor

from solverbench.backbones.base import Backbone
from solverbench.benchmark.conformance.checks import Check, content, demand, run_probes
from solverbench.benchmark.load import load_backbone, load_schedule
from solverbench.errors import SolverBenchError
from solverbench.schedule import nodes
from solverbench.solvers.base import Setting
from solverbench.solvers.schedules import ScheduleOptimiser, ScheduleTask

FRAMES = ("vp-linear", "ve", "vp-discrete-sd", "vp-discrete-ldm")
STEPS = (4, 5, 6, 10)


def check_schedule(name: str) -> list[Check]:
    """Check a schedule optimiser on drawn mixtures.

    Args:
        name: registered name.

    Returns:
        A check a requirement.

    Raises:
        SolverBenchError: for an unknown name.
    """
    optimiser = load_schedule(name)
    return run_probes(
        {
            "names its source": lambda: demand(bool(optimiser.source), optimiser.source),
            "gives times that a solver can use": lambda: _usable(optimiser),
            "same call twice gives the same bits": lambda: _repeated(optimiser),
            "writes nothing to itself": lambda: _untouched(optimiser),
        }
    )


def _times(optimiser: ScheduleOptimiser, backbone: Backbone, num: int) -> Tensor:
    schedule = backbone.schedule
    task = ScheduleTask(
        setting=Setting(schedule, num, backbone.output),
        num_steps=num,
        t_min=schedule.t_min,
        backbone=backbone,
        noise=backbone.noise,
        condition=backbone.condition,
    )
    with torch.no_grad():
        return optimiser.times(task)


def _first(optimiser: ScheduleOptimiser) -> tuple[Backbone, int, Tensor]:
    """The first frame and number of steps that the optimiser has times for."""
    refused = SolverBenchError("it was asked for nothing")
    for frame in FRAMES:
        backbone = load_backbone("gaussian", frame=frame)
        for num in STEPS:
            try:
                return backbone, num, _times(optimiser, backbone, num)
            except SolverBenchError as error:
                refused = error
    raise refused


def _usable(optimiser: ScheduleOptimiser) -> str:
    backbone, num, t = _first(optimiser)
    demand(t.shape == (num + 1,) and t.dtype == torch.float64, f"{tuple(t.shape)}, {t.dtype}")
    nodes(backbone.schedule, num, t.tolist())
    return ", ".join(f"{float(v):.4g}" for v in t)


def _repeated(optimiser: ScheduleOptimiser) -> str:
    backbone, num, t = _first(optimiser)
    return demand(torch.equal(t, _times(optimiser, backbone, num)), f"{num} steps, two runs")


def _untouched(optimiser: ScheduleOptimiser) -> str:
    before = content(vars(optimiser))
    _first(optimiser)
    return demand(before == content(vars(optimiser)), "attributes compared")
