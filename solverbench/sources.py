"""Files read in place, a part at a time: what the readers of foreign files share; a leaf."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from solverbench.errors import SolverBenchError

BLOCK = 1 << 14  # bytes read ahead


def refuse(what: str) -> NoReturn:
    """End with one line.

    Raises:
        SolverBenchError: always.
    """
    raise SolverBenchError(f"the file is refused: {what}. Nothing in it was run")


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
            refuse("it ends too early, so the file is cut or damaged")
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
            refuse("it ends too early, so the file is cut or damaged")


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
        raise SolverBenchError(f"{path} cannot be read: {error.strerror}") from error
    except SolverBenchError as error:
        raise SolverBenchError(f"{path}: {error}") from error


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
