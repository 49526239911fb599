"""Errors that a user can cause; the command line prints them in one line and exits with code 2."""

import difflib
from collections.abc import Iterable


class SolverBenchError(Exception):
    """What a user can cause and mend: an unknown name, a bad recipe, a torn or foreign file."""


class MissingWeightsError(SolverBenchError):
    """Published files that are not on this machine; the command line exits with code 3.

    Args:
        names: of the files, as ``solverbench weights list`` shows them.
        text: what is said; the command that fetches them by default.
    """

    def __init__(self, names: Iterable[str], text: str = "") -> None:
        self.names = tuple(names)
        missing, listed = ", ".join(self.names), " ".join(self.names)
        super().__init__(
            text or f"missing: {missing}. Get it with: solverbench weights fetch {listed}"
        )


def shown(text: str, most: int = 200) -> str:
    """Foreign text for a terminal or a page: what cannot be printed is escaped, the end cut off.

    Args:
        text: anything, lone surrogates and control characters too.
        most: letters that are kept.
    """
    cut = text[:most] + ("..." if len(text) > most else "")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in cut)


def unknown_name(kind: str, name: str, allowed: Iterable[str], where: str) -> SolverBenchError:
    """The error for a name that nothing carries, with the nearest one that exists.

    Args:
        kind: what was named, for example ``solver``.
        name: what the user wrote.
        allowed: the names that exist.
        where: how to see them all, for example ``solverbench list solvers``.

    Returns:
        The error, to be raised by the caller.
    """
    near = difflib.get_close_matches(name, sorted(allowed), n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return SolverBenchError(f"unknown {kind} '{name}'{hint} All names: {where}")
