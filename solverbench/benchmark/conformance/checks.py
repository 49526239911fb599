"""A requirement, how it was met, and how requirements are tried one by one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Check:
    """One requirement and how a plugin met it.

    Attributes:
        title: what is required, a sentence.
        passed: whether it is met.
        detail: what was measured, or what went wrong; one line.
    """

    title: str
    passed: bool
    detail: str


class UnmetError(Exception):
    """A requirement that is not met."""


Probes = Mapping[str, Callable[[], str]]


def run_probes(probes: Probes) -> list[Check]:
    """Each probe returns what it measured, or raises; whatever is raised is a row."""
    checks = []
    for title, probe in probes.items():
        try:
            checks.append(Check(title, True, probe()))
        except UnmetError as unmet:
            checks.append(Check(title, False, str(unmet)))
        except Exception as error:
            line = " ".join(str(error).split())
            checks.append(Check(title, False, f"{type(error).__name__}: {line}"))
    return checks


def demand(met: bool, detail: str) -> str:
    """The detail, where a requirement is met; ``UnmetError`` with it otherwise."""
    if not met:
        raise UnmetError(detail)
    return detail


def content(value: Any, depth: int = 6) -> Any:
    """A value in a form that compares by content; objects are opened, to a depth."""
    if isinstance(value, Tensor):
        host = value.detach().cpu().contiguous()
        return tuple(host.shape), str(host.dtype), host.numpy().tobytes()
    if depth and isinstance(value, Mapping):
        return {key: content(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple):
        return [content(item, depth - 1) for item in value]
    if depth and hasattr(value, "__dict__") and not callable(value):
        return content(vars(value), depth - 1)
    return repr(value)
