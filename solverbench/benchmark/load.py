"""Plugins made from their names, with options checked before anything slow starts."""

import inspect
import typing
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from solverbench import registry
from solverbench.backbones.base import Backbone
from solverbench.discriminator import LATENT, R3GANDiscriminator, preset
from solverbench.errors import SolverBenchError, unknown_name
from solverbench.published_discriminator import file_of, load_file, published
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
    for place in ("weights", "config", "prompts"):
        if options.get(place) == "":
            raise SolverBenchError(
                f"backbone {name}: option {place} is empty; give a path, or leave it away"
            )
    if isinstance(options.get("device"), str):
        check_device(f"backbone {name}", options["device"])
    try:
        made: Backbone = kind(**options)
    except ValueError as error:
        line = str(error).strip().partition("\n")[0]
        raise SolverBenchError(f"backbone {name}: {line}") from error
    return made


def check_device(where: str, name: str) -> None:
    """Refuse a device that this machine does not have.

    Args:
        where: what it is for, for the message.
        name: for example ``cpu`` or ``cuda:1``.

    Raises:
        SolverBenchError: names those that it has.
    """
    if name == "cpu":
        return
    found = ["cpu"]
    kind = torch.accelerator.current_accelerator()
    if kind is not None and torch.accelerator.is_available():
        numbered = range(torch.accelerator.device_count())
        found += [kind.type, *(f"{kind.type}:{number}" for number in numbered)]
    if name not in found:
        raise SolverBenchError(
            f"{where}: device {name} is not available here; allowed: {', '.join(found)}"
        )


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


def load_discriminator(
    name: str, *, weights: str | Path | None = None, precision: str = "float32", seed: int = 0
) -> R3GANDiscriminator:
    """A discriminator: ``logits(x)`` gives scores (B,), ``trainable_parameters()`` what to train.

    Args:
        name: ``r3gan`` for the file ``weights``; a published one of ``solverbench weights list``;
            ``latent-3`` or ``latent-4``, drawn anew for latents of 64 x 64.
        weights: published ``.pkl`` or converted ``.safetensors`` file.
        precision: ``float32``, or ``stored`` for stages that compute in the types of the file.
        seed: of what is drawn anew.

    Returns:
        The discriminator, weights in float32, on the CPU.

    Raises:
        SolverBenchError: for an unknown name, a bad value, or a missing, damaged or foreign file.
    """
    if name == "r3gan" and weights is None:
        raise SolverBenchError("r3gan needs weights=PATH, a .pkl or .safetensors file")
    if name != "r3gan" and weights is not None:
        raise SolverBenchError(f"weights are for discriminator r3gan; got them for {name}")
    if name in LATENT:
        return preset(name, LATENT[name], torch.Generator().manual_seed(seed))
    path = Path(weights) if weights is not None else file_of(name)
    if path is None:
        known = ("r3gan", *LATENT, *published())
        raise unknown_name("discriminator", name, known, ", ".join(known))
    try:
        return load_file(path, precision)
    except ValueError as error:
        raise SolverBenchError(f"discriminator {name}: {error}") from error


def is_learnable(name: str) -> bool:
    """Whether a solver has parameters to train."""
    kind = registry.solvers.get(name)
    return isinstance(kind, type) and issubclass(kind, LearnableSolver)


def check_options(what: str, name: str, kind: Any, options: dict[str, Any], skip: int) -> None:
    """Refuse keywords that a plugin's ``__init__`` does not have.

    Raises:
        SolverBenchError: names the option and those that exist.
    """
    hints = option_hints(kind, skip)
    for option in options:
        if option not in hints:
            listed = ", ".join(hints) or "none"
            raise SolverBenchError(f"{what} {name} has no option '{option}'; it has: {listed}")
    for option, value in options.items():
        _check_type(f"{what} {name}: option {option}", value, hints[option])


def option_hints(kind: Any, skip: int) -> dict[str, Any]:
    """The keywords of a plugin's ``__init__`` with their types, in order.

    Keywords gathered as ``**options: Unpack[SomeTypedDict]`` are listed one by one.

    Args:
        kind: the plugin.
        skip: leading parameters that are no options, ``self`` among them.
    """
    typed = typing.get_type_hints(kind.__init__)
    found: dict[str, Any] = {}
    for parameter in list(inspect.signature(kind.__init__).parameters.values())[skip:]:
        hint = typed.get(parameter.name, Any)
        gathered = typing.get_args(hint) if parameter.kind is parameter.VAR_KEYWORD else ()
        if gathered:
            found |= typing.get_type_hints(gathered[0])
        else:
            found[parameter.name] = hint
    return found


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
