"""Writing files so that a reader never sees half of one. No torch here."""

import contextlib
import glob
import hashlib
import os
import platform
from pathlib import Path

from solverbench.errors import SolverBenchError

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]  # of names of files on the way


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part.

    Args:
        path: where; missing folders are made.
        data: the whole content.

    Raises:
        SolverBenchError: if the folder cannot be made or the file cannot be written.
    """
    aside = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise SolverBenchError(
            f"cannot write {path}: {error.strerror}. Free space, mend its folder or name another"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone after the rename; left over after a fault
            aside.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what processes of this machine that were killed left beside a file."""
    if os.name != "posix":  # elsewhere asking for a process could end it
        return
    for left in path.parent.glob(f".{glob.escape(path.name)}.{HOST}.*.tmp"):
        pid = left.suffixes[-2][1:]
        if pid.isdecimal() and not _alive(int(pid)):
            left.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as ``write_bytes`` does."""
    write_bytes(path, text.encode())


def sha256_of(path: Path | None) -> str:
    """The checksum of a file, hexadecimal; empty where there is none."""
    if not path or not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
