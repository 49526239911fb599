"""Plugins made from their names, with options checked before anything slow starts."""

import inspect
import typing
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from solverbench import registry
from solverbench.backbones.base import Backbone
from solverbench.errors import SolverBenchError
from solverbench.schedule import GRIDS
from solverbench.solvers.base import LearnableSolver, Setting, Solver
from solverbench.solvers.schedules import ScheduleOptimiser
from solverbench.stored_schedules import STORED_SIGMAS


def load_backbone(name: str, **options: Any) -> Backbone:
    """A backbone by its registered name.

    Args:
        name: see ``solverbench list backbones``.
        **options: keywords of its class.

    Returns:
        The backbone, frozen and in eval mode.

    Raises:
        SolverBenchError: for an unknown name or option, a bad value, or missing weights.
    """
    kind = registry.backbones.get(name)
    check_options("backbone", name, kind, options, skip=1)
    try:
        made: Backbone = kind(**options)
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        line = str(error).strip().partition("\n")[0]
        raise SolverBenchError(f"backbone {name}: {line}") from error
    return made


def load_solver(name: str, backbone: Backbone, nfe: int, **options: Any) -> Solver:
    """A solver by its registered name, bound to a backbone and an NFE.

    Args:
        name: see ``solverbench list solvers``.
        backbone: its noise schedule and network output are used, not its weights.
        nfe: network evaluations a sample.
        **options: keywords of its class.

    Returns:
        The solver; ``.tableau()`` is what to sample with.

    Raises:
        SolverBenchError: for an unknown name or option, or an NFE that it cannot meet.
    """
    kind = registry.solvers.get(name)
    check_options("solver", name, kind, options, skip=2)
    grid = options.get("schedule")
    if grid in registry.schedules.names() and grid not in STORED_SIGMAS:
        raise SolverBenchError(
            f"'{grid}' is a schedule optimiser; write it beside the solver in a recipe, "
            f"{{name: {name}, schedule: {grid}}}"
        )
    try:
        setting = Setting(backbone.schedule, nfe, backbone.output)
        made: Solver = kind(setting, **options)
    except (ValueError, TypeError) as error:
        raise SolverBenchError(_named(name, str(error))) from error
    return made


def load_schedule(name: str, **options: Any) -> ScheduleOptimiser:
    """A schedule optimiser by its registered name.

    Args:
        name: see ``solverbench list schedules``.
        **options: keywords of its class.

    Returns:
        The optimiser; ``.times(task)`` runs it.

    Raises:
        SolverBenchError: for an unknown name or option, or a bad value.
    """
    if name in (*GRIDS, *STORED_SIGMAS) and name not in registry.schedules.names():
        raise SolverBenchError(
            f"'{name}' is a time grid, no schedule optimiser; write it among the solver's options, "
            f"options: {{schedule: {name}}}"
        )
    kind = registry.schedules.get(name)
    check_options("schedule", name, kind, options, skip=1)
    try:
        made: ScheduleOptimiser = kind(**options)
    except (ValueError, TypeError) as error:
        raise SolverBenchError(_named(name, str(error))) from error
    return made


def is_learnable(name: str) -> bool:
    """Whether a solver has parameters to train."""
    kind = registry.solvers.get(name)
    return isinstance(kind, type) and issubclass(kind, LearnableSolver)


def check_options(what: str, name: str, kind: Any, options: dict[str, Any], skip: int) -> None:
    """Refuse keywords that a plugin's ``__init__`` does not have.

    Raises:
        SolverBenchError: names the option and those that exist.
    """
    allowed = list(inspect.signature(kind.__init__).parameters)[skip:]
    for option in options:
        if option not in allowed:
            listed = ", ".join(allowed) or "none"
            raise SolverBenchError(f"{what} {name} has no option '{option}'; it has: {listed}")
    hints = typing.get_type_hints(kind.__init__)
    for option, value in options.items():
        if option in hints:
            _check_type(f"{what} {name}: option {option}", value, hints[option])


def _check_type(where: str, value: Any, hint: Any) -> None:
    """Refuse a value that is not of the annotated type; whole numbers pass as real ones."""
    adapter = TypeAdapter[Any](hint, config=ConfigDict(arbitrary_types_allowed=True))
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise SolverBenchError(f"{where} is {value!r}; wanted: {wanted}") from error


def _named(name: str, message: str) -> str:
    return message if message.startswith(name) else f"{name}: {message}"
