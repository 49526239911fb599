"""Files read in place, a part at a time: what the readers of foreign files share; a leaf."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from solverbench.errors import SolverBenchError, shown

BLOCK = 1 << 14  # bytes read ahead


def refuse(what: str) -> NoReturn:
    """End with one line about a file that could have run something.

    Raises:
        SolverBenchError: always.
    """
    unfit(f"{what}. Nothing in it was run")


def unfit(what: str) -> NoReturn:
    """End with one line about a file that could not.

    Raises:
        SolverBenchError: always.
    """
    raise SolverBenchError(f"the file is refused: {what}")


class Source:
    """Random access to a file that is never held whole.

    Args:
        file: seekable, open for bytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size = file, file.seek(0, 2)
        self._first, self._block = 0, b""

    def at(self, start: int, size: int) -> bytes:
        """``size`` bytes from ``start``.

        Raises:
            SolverBenchError: where the file ends before.
        """
        if start < 0 or start + size > self.size:
            unfit("it ends too early, so the file is cut or damaged")
        offset = start - self._first
        if offset < 0 or offset + size > len(self._block):
            self.file.seek(start)
            self._first, self._block, offset = start, self.file.read(max(size, BLOCK)), 0
        return self._block[offset : offset + size]

    def read_into(self, start: int, target: memoryview) -> None:
        """Fill ``target`` from ``start`` on.

        Raises:
            SolverBenchError: where the file ends before.
        """
        self.file.seek(start)
        if self.file.readinto(target) != len(target):  # type: ignore[attr-defined]
            unfit("it ends too early, so the file is cut or damaged")


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """A file as a source, its name in front of every complaint.

    Raises:
        SolverBenchError: for a missing or unreadable file, or what is wrong inside.
    """
    try:
        with path.open("rb") as file:
            yield Source(file)
    except OSError as error:
        raise _unreadable(path, error) from error
    except SolverBenchError as error:
        raise SolverBenchError(f"{path}: {error}") from error


def expect_file(path: Path, what: str) -> None:
    """Refuse a path where no file is.

    Args:
        path: where it should be.
        what: belongs there, for example ``an EDM network``.

    Raises:
        SolverBenchError: for nothing, a folder, or a path that cannot be.
    """
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise _unreadable(path, error) from error
    if is_folder:
        raise SolverBenchError(f"{path} is a folder: {what} is a file; name that")
    if not is_file:
        raise SolverBenchError(f"{path} is missing: {what} belongs there")


def _unreadable(path: Path, error: OSError) -> SolverBenchError:
    return SolverBenchError(f"{shown(str(path))} cannot be read: {error.strerror or error}")


@dataclass(frozen=True, slots=True)
class Blob:
    """A long byte string, left in the file.

    Attributes:
        source: the file.
        start: first byte.
        size: bytes.
    """

    source: Source
    start: int
    size: int
