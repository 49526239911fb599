"""Plugins by name, found by entry points: solvers, schedules, backbones, metrics and others."""

from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from solverbench.errors import SolverBenchError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Lazy and read-only: names are known without importing anything.

    Args:
        kind: what it holds, singular; the entry-point group is ``solverbench.<kind>s``.
    """

    def __init__(self, kind: str) -> None:
        self.kind, self.group = kind, f"solverbench.{kind}s"

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._points())

    def package(self, name: str) -> str:
        """The distribution that provides ``name``, with its version."""
        distribution = self._point(name).dist
        return f"{distribution.name} {distribution.version}" if distribution else "unknown"

    def get(self, name: str) -> type[T]:
        """The class behind a name; imports its module.

        Raises:
            SolverBenchError: for a name that nothing carries, or a plugin that cannot be imported.
        """
        point = self._point(name)
        try:
            return point.load()  # type: ignore[no-any-return]
        except Exception as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise SolverBenchError(
                f"{self.kind} '{name}' of {self.package(name)} cannot be imported: {what}"
            ) from error

    def items(self) -> Iterator[tuple[str, type[T]]]:
        """Names and classes; imports them all."""
        return ((name, self.get(name)) for name in self.names())

    def _point(self, name: str) -> EntryPoint:
        points = self._points()
        if name not in points:
            raise unknown_name(self.kind, name, points, f"solverbench list {self.kind}s")
        return points[name]

    def _points(self) -> dict[str, EntryPoint]:
        return _scan(self.group)


@cache
def _scan(group: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        known = found.setdefault(point.name, point)
        if known.value != point.value:
            owners = " and ".join(str(p.dist.name if p.dist else p.value) for p in (known, point))
            raise SolverBenchError(
                f"'{point.name}' in {group} is claimed by {owners}; uninstall one of them."
            )
    return found


solvers: Registry[Any] = Registry("solver")
backbones: Registry[Any] = Registry("backbone")
metrics: Registry[Any] = Registry("metric")
extractors: Registry[Any] = Registry("extractor")
distances: Registry[Any] = Registry("distance")
schedules: Registry[Any] = Registry("schedule")
