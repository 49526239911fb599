"""Times that a schedule optimiser chooses for the solver of a cell; made once, kept on disk."""

import inspect
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from solverbench import registry, tensorfile
from solverbench.backbones.base import Backbone
from solverbench.benchmark.load import load_schedule, load_solver
from solverbench.benchmark.meter import peak_memory, stopwatch
from solverbench.benchmark.spec import Named, RunSpec
from solverbench.errors import SolverBenchError
from solverbench.solvers.base import Solver
from solverbench.solvers.schedules import ScheduleOptimiser, ScheduleTask

FORMAT = "solverbench-times-1"


@dataclass(frozen=True)
class Times:
    """The times of a cell and what they cost.

    Attributes:
        nodes: N + 1 of them, noisiest first.
        fit_seconds: of the optimiser.
        fit_peak_bytes: above what was there before.
        fit_network_rows: rows through the network.
    """

    nodes: tuple[float, ...]
    fit_seconds: float
    fit_peak_bytes: int
    fit_network_rows: int

    def cost(self) -> dict[str, Any]:
        """The fields of a record's cost."""
        return {key: value for key, value in asdict(self).items() if key != "nodes"}


def solver_of(spec: RunSpec, backbone: Backbone, times: tuple[float, ...] | None = None) -> Solver:
    """The solver of a cell.

    Args:
        spec: the cell.
        backbone: what it is bound to.
        times: what the cell's schedule optimiser chose; without them the default ones stand in.

    Raises:
        SolverBenchError: for options that do not fit, also those of the schedule optimiser.
    """
    options = spec.solver.options
    if spec.schedule is not None:
        load_schedule(spec.schedule.name, **spec.schedule.options)
        kind = registry.solvers.get(spec.solver.name)
        if "schedule" not in inspect.signature(kind.__init__).parameters:
            raise SolverBenchError(
                f"solver {spec.solver.name} chooses its own times; take away the schedule "
                f"'{spec.schedule.name}'"
            )
        if "schedule" in options:
            raise SolverBenchError(
                f"solver {spec.solver.name} has the option schedule={options['schedule']} and the "
                f"schedule '{spec.schedule.name}'; keep one of them"
            )
    if times is not None:
        options = options | {"schedule": list(times)}
    return load_solver(spec.solver.name, backbone, spec.nfe, **options)


def times_of(spec: RunSpec, backbone: Backbone, folder: Path) -> Times | None:
    """The times of a cell, from the folder where a former run left them.

    Args:
        spec: the cell.
        backbone: for what it evaluates.
        folder: for ``times.safetensors``.

    Returns:
        None for a cell without a schedule optimiser.

    Raises:
        SolverBenchError: where the optimiser finds none.
    """
    if spec.schedule is None:
        return None
    path = folder / "times.safetensors"
    if path.exists():
        tensors, facts = tensorfile.read(path, FORMAT)
        if facts.pop("weights") == backbone.weights_sha256:
            return Times(tuple(tensors["nodes"].tolist()), **facts)
    optimiser, task = _loaded(spec, backbone)
    seconds: list[float] = []
    with (
        peak_memory(backbone.device) as peak,
        backbone.counting() as count,
        stopwatch(backbone.device, seconds),
        torch.no_grad(),
    ):
        nodes = optimiser.times(task)
    found = Times(tuple(nodes.tolist()), seconds[0], peak.bytes, count.rows)
    facts = found.cost() | {"weights": backbone.weights_sha256}
    tensorfile.write(path, FORMAT, {"nodes": nodes}, facts)
    return found


def check_times(spec: RunSpec, backbone: Backbone) -> None:
    """Let a schedule optimiser say what it cannot do, before anything slow starts.

    Raises:
        SolverBenchError: where it refuses the cell.
    """
    if spec.schedule is not None:
        optimiser, task = _loaded(spec, backbone)
        optimiser.check(task)


def _loaded(spec: RunSpec, backbone: Backbone) -> tuple[ScheduleOptimiser, ScheduleTask]:
    """The schedule optimiser of a cell and what it is asked for."""
    assert spec.schedule is not None
    solver = solver_of(spec, backbone)
    t = solver.grid().t.detach()
    task = ScheduleTask(
        setting=solver.setting,
        num_steps=len(t) - 1,
        t_min=float(t[-1]),
        backbone=backbone,
        noise=backbone.noise,
        condition=backbone.condition,
    )
    return load_schedule(spec.schedule.name, **spec.schedule.options), task


def schedule_title(spec: RunSpec) -> str:
    """How a table writes the schedule behind the solver; empty where there is none."""
    return f" [{registry.schedules.get(spec.schedule.name).title}]" if spec.schedule else ""


def schedule_facts(named: Named | None) -> dict[str, Any]:
    """A schedule optimiser with all its options, for a record."""
    if named is None:
        return {}
    kind = registry.schedules.get(named.name)
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {"schedule_optimiser": {"name": named.name} | defaults | named.options}
